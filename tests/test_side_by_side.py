"""The bench in turn runs, and its variants learn alike; never how fast."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pressroom.console import UserError

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import side_by_side  # noqa: E402


def test_variants_take_turns_and_lose_alike(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    variants = ("trl:1:none", "pressroom:1:none:dense:plain", "pressroom:1:none:auto:least")
    options = [part for variant in variants for part in ("--variant", variant)]
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH / "side_by_side.py"), "--hidden", "64", "--layers", "1"),
            *("--steps", "2", "--rows", str(out), *options),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["trl:1:none:sdpa", *variants[1:]]
    assert rows[0]["ratio"] == rows[0]["ratio_of_core_seconds"] == 1
    for row in rows:
        assert (row["bench"], row["precision"], row["steps"]) == ("side_by_side", "bf16", 2)
        assert row["tokens_per_second"] == pytest.approx(512 / row["step_seconds"], rel=1e-2)
        assert row["ratio"] > 0
        assert row["loss"] == pytest.approx(8.3, abs=0.2)  # ln 4096
    assert rows[1]["loss"] == pytest.approx(rows[2]["loss"], abs=2e-3)
    assert "attention by blocks, save least; 1 of 1 decoder layers are fused" in done.stderr
    assert "attention by dense; all layers plain, as asked" in done.stderr


def test_a_variant_that_fails_ends_the_bench(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="a variant's process has ended, see above"):
        side_by_side.measure(("pressroom:1:none:varlen",), side_by_side.geometry(64, 1), "bf16", 1)
    assert "speed.attention: varlen: it needs a GPU" in capfd.readouterr().err
