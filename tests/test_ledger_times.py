"""times.jsonl: written as things are done, whole lines after any kill, never a reason to end."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ledgers import DAY, a_run, marks, start, write

from launch.recorded import recorded
from pressroom.console import UserError
from pressroom.locks import lock
from pressroom.times import Marks, read_times


def test_what_is_done_is_told_from_what_was_done_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    path = tmp_path / "times.jsonl"
    now = time.time()
    told = Marks(path)
    told.start(now - 100, gpus=8, cpus=2)
    told.mark("load", 40)
    time.sleep(0.05)
    told.mark("step", 41)
    (begun,) = read_times(path).starts
    assert (begun.job, begun.restart, begun.gpus, begun.cpus) == ("812", 2, 8, 2)
    load, step = begun.marks
    assert (load.what, load.step, step.what, step.step) == ("load", 40, "step", 41)
    assert load.seconds == pytest.approx(100, abs=2)
    assert 0.05 <= step.seconds < 2
    assert begun.end == pytest.approx(time.time(), abs=2)


def test_a_clock_that_was_set_back_gives_no_seconds_below_zero(tmp_path: Path) -> None:
    told = Marks(tmp_path / "times.jsonl")
    told.start(time.time() + 3600, gpus=1, cpus=1)
    told.mark("load", 0)
    assert read_times(tmp_path / "times.jsonl").starts[0].marks[0].seconds < 2


def test_a_line_that_was_cut_spoils_no_other(home: Path) -> None:
    run = a_run(home)
    write(run, start(DAY), *marks("load 0 1"), '{"what": "step", "st')
    Marks(run.times).start(DAY, gpus=1, cpus=1)
    write(run, *marks("load 0 2"))
    found = read_times(run.times)
    assert [[m.seconds for m in begun.marks] for begun in found.starts] == [[1.0], [2.0]]
    assert found.damaged == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"what": "step", "step": 1, "seconds": -1}',
        '{"what": "step", "step": 1, "seconds": NaN}',
        '{"what": "step", "step": 1, "seconds": 1e99}',
        '{"what": "step", "step": true, "seconds": 1}',
        '{"what": "step", "step": 1, "seconds": "1"}',
        '{"what": "step", "step": 1}',
        '{"what": "start", "at": 1, "gpus": null, "cpus": 1, "marks": 3}',
        '{"what": "stage", "stage": 3, "at": 1, "seconds": 1, "gpus": null, "cpus": 1}',
        '["step"]',
        "[" * 100_000,
        "\x00",
    ],
)
def test_lines_that_are_none(home: Path, line: str) -> None:
    run = a_run(home)
    write(run, start(DAY), line + "\n", *marks("load 0 1"))
    found = read_times(run.times)
    assert (len(found.starts), found.starts[0].marks[0].what, found.damaged) == (1, "load", 1)


def test_a_mark_before_any_start_is_of_nobody(home: Path) -> None:
    run = a_run(home)
    write(run, *marks("step 1 1"), start(DAY))
    assert (read_times(run.times).damaged, read_times(run.times).starts[0].marks) == (1, [])


def test_no_training_ends_for_want_of_its_times(tmp_path: Path) -> None:
    told = Marks(tmp_path / "gone" / "times.jsonl")
    told.start(time.time(), gpus=1, cpus=1)
    told.mark("load", 0)
    assert list(tmp_path.iterdir()) == []


def test_stages_are_timed_whether_they_end_well_or_not(home: Path) -> None:
    run, keys = a_run(home), SimpleNamespace(evaluate="key")
    run.evaluation.write_text("{}")
    with recorded(run, keys, "evaluate"):
        time.sleep(0.02)
    with pytest.raises(UserError), recorded(run, keys, "merge"):
        raise UserError("no")
    with recorded(run, keys, "prep", 3):  # other tasks may write at this moment
        pass
    with lock(run.lock, "the run"), pytest.raises(UserError), recorded(run, keys, "train"):
        raise UserError("another process trains here")
    lines = [json.loads(line) for line in run.times.read_text().splitlines()]
    assert [(line["stage"], line["gpus"]) for line in lines] == [("evaluate", 0), ("merge", 0)]
    first = read_times(run.times).stages[0]
    assert 0.02 <= first.seconds < 30
    assert first.at == pytest.approx(time.time(), abs=30)
    assert first.cpus >= 1
