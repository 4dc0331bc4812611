"""A real training's hours: what it writes of its times, and what the ledger makes of them."""

import shutil
from pathlib import Path

import pytest
from training import metrics, train

from launch.ledger import of_runs, rows
from pressroom.times import read_times


def test_a_real_run_that_goes_back_to_a_checkpoint(make_recipe, home: Path) -> None:
    make_recipe(checkpoint={"every_steps": 2, "keep_best": False}, evaluation={"every_steps": 3})
    run = train("optimizer.num_steps=4")
    (start,) = read_times(run.times).starts
    each = [("step", 1), ("step", 2), ("save", 2), ("step", 3), ("evaluate", 3), ("step", 4)]
    done = [(mark.what, mark.step) for mark in start.marks]
    assert done[:7] == [("load", 0), *each]
    assert set(done[7:]) == {("evaluate", 4), ("save", 4), ("end", 4)}  # and the adapter
    steps = sum(mark.seconds for mark in start.marks if mark.what == "step")
    assert steps == pytest.approx(
        sum(row.get("step_seconds", 0.0) for row in metrics(run)), rel=0.3
    )

    # As if it had been killed after step 4: step 3, its evaluation and step 4 are done again.
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.checkpoint(4))
    train("optimizer.num_steps=4", run=run)
    first, second = read_times(run.times).starts
    assert first == start
    assert (second.marks[0].what, second.marks[0].step) == ("load", 2)
    (row,) = rows(of_runs([run]))
    again = [m.seconds for m in first.marks if m.step > 2 and m.what != "end"]
    again.append(second.marks[0].seconds)
    assert row.parts["lost"] == pytest.approx(sum(again) * first.cpus / 3600)
    assert row.parts["evaluation"] == pytest.approx(
        sum(m.seconds for m in second.marks if m.what == "evaluate") * first.cpus / 3600
    )
    assert (row.unit, row.starts, row.parts["unknown"]) == ("CPU", 2, None)
