"""Every write, fsync and rename of the checkpoint writer, killed and failed: a start follows."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fault_points import KILL
from training import losses

from data_prep.prepare import prepare
from pressroom.run_dir import RunDir

TESTS = Path(__file__).parent


def test_whatever_call_of_a_save_is_struck_the_next_start_goes_on(make_recipe, home: Path) -> None:
    recipe = make_recipe(
        optimizer={"num_steps": 5},
        checkpoint={"every_steps": 2, "keep_last": 1},
        tracking={"trackers": []},
    )
    prepare(recipe)
    library = home / "fault_points.so"
    source = TESTS / "fault_points.c"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "fault_points.py"), str(home), str(library)],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((home / "found.json").read_text())
    points = told["points"]
    calls = [point["call"] for point in points]
    # safetensors writes under a name of its own, and renames by the kernel's call.
    for name in (".tmp", "optimizer.pt", "rng_state", "trainer_state.json", "manifest.json"):
        assert any(c.startswith("write") and name in c for c in calls), name
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state", "manifest.json"):
        assert any(c.startswith("fsync") and name in c for c in calls), name
    assert sum(c.startswith("rename") for c in calls) >= 2 * 3
    assert any(c.startswith("unlink") for c in calls)  # of the checkpoint that is dropped
    published = False
    for point in points:
        published |= point["kind"] == KILL and point["newest"] == 4
        assert point["newest"] == (4 if published or point["code"] == 0 else 2), point
        if point["kind"] == KILL:
            assert point["code"] == -9, point
        elif "step-000002" in point["call"]:
            assert point["code"] == 0  # that an old one stays is no reason to end
        elif point["code"]:
            assert point["message"].startswith("UserError: the checkpoint of step 4 could not be")
            assert "No space left" in point["message"] or "torch could not" in point["message"]
            assert f"the checkpoint of step {point['newest']} is whole" in point["message"]
    assert published
    resumed = [point for point in points if "resumed" in point]
    assert {point["newest"] for point in resumed} == {2, 4}
    assert len(resumed) >= 6
    expected = losses(RunDir(Path(told["run"])))
    for point in resumed:
        run = RunDir(Path(point["left"]))
        assert point["resumed"] == 0, point
        assert losses(run) == expected, point
        assert run.adapter.is_dir()
