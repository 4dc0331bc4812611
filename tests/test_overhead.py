"""The bench of the trainer's overhead runs and tells the shape of a figure; never how fast."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

from overhead import GEOMETRY, ROW, WARMUP, bare_steps, torch_loss, trainers_loss  # noqa: E402
from random_rows import random_rows  # noqa: E402
from stacks import Variant  # noqa: E402


def test_a_row_has_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = ["--steps", str(WARMUP + 2), "--rows", str(out), "--variant", "pressroom:1:none"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "overhead.py"), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["bare_loss"] for row in rows] == ["ours", "torch"]
    for row in rows:
        assert (row["bench"], row["variant"], row["steps"]) == (
            "overhead",
            "pressroom:1:none:auto",
            2,
        )
        assert row["ratio"] == pytest.approx(
            row["tokens_per_second"] / row["bare_tokens_per_second"], rel=1e-3
        )
        assert row["ratio_of_core_seconds"] > 0
        assert row["threads"] == 1
        ours, bare = row["losses"]
        assert ours == pytest.approx(bare, abs=0.2)
        assert {"hardware", "torch", "commit", "date", "command"} <= row.keys()
        assert f"{row['ratio']:.3f} of the bare loop's tokens/s" in done.stdout


def test_the_bare_loops_losses_are_one_loss() -> None:
    """Honest: both compute the same sum over the same packed rows, and both learn."""
    rows = random_rows(4, ROW, 150, GEOMETRY.vocab_size)
    variant = Variant.parse("pressroom:1:none")
    ours, plain = (list(bare_steps(variant, rows, 3, loss)) for loss in (trainers_loss, torch_loss))
    assert ours == pytest.approx(plain, abs=2e-3)
    assert len(set(ours)) == 3
    assert torch.get_num_threads() == 1
