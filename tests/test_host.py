"""The bench of the host's share runs, and its figures hang together; never how fast."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def test_loader_and_start_give_rows(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH / "host.py"), "--item", "loader", "--item", "start"),
            *("--repeats", "0", "--rows", str(out)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loader, start = (json.loads(line) for line in out.read_text().splitlines())
    rate = loader["tokens_per_core_second"] / 160_000
    assert loader["ratio_to_a_node"] == pytest.approx(rate, abs=0.01)
    parts = start["seconds"]
    assert list(parts)[:3] == ["launcher", "torch", "libraries"]
    assert list(parts)[-1] == "first step"
    assert all(seconds >= 0 for seconds in parts.values())
    assert start["total_seconds"] == pytest.approx(sum(parts.values()), abs=0.02)
