"""Two real ranks under accelerate's launcher: asked to end, and one of them killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from test_launch import descendants
from training import losses

from data_prep.prepare import prepare
from launch import local
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import checkpoint

OPTIONS = ("optimizer.num_steps=100000", "checkpoint.every_steps=5", "tracking.trackers=[]")


def launched(run: RunDir) -> subprocess.Popen:
    """Two ranks that train a run, as SLURM's node script starts them: USR2 ignored."""
    config = Path(local.__file__).parents[1] / "accelerate_configs" / "ddp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", "2", "--num_machines", "1", "-m", "train.sft", "recipe.yaml"]
    return subprocess.Popen(
        [*command, *OPTIONS, "--run", str(run.path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
    )


def trained_beyond(run: RunDir, step: int, process: subprocess.Popen) -> list[psutil.Process]:
    """Wait until a run is beyond a step; the launcher and its ranks."""
    deadline = time.monotonic() + 120
    while not run.metrics.is_file() or max(losses(run), default=0) <= step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = [psutil.Process(number) for number in descendants(process.pid)]
    assert len(found) >= 3
    return found


def test_two_real_ranks_end_when_asked_and_when_one_dies(make_recipe, home: Path) -> None:
    make_recipe()
    prepare(Recipe.load("recipe.yaml", OPTIONS))
    run = RunDir.create(Recipe.load("recipe.yaml", OPTIONS))
    process = launched(run)
    everybody = trained_beyond(run, 7, process)
    for each in everybody:  # as scancel does: the launcher too
        each.send_signal(signal.SIGUSR2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    step = json.loads(run.preempted.read_text())["step"]
    newest = checkpoint.newest(run)
    assert newest
    assert newest.manifest.step == step == max(losses(run))

    process = launched(run)
    everybody = trained_beyond(run, step + 6, process)
    assert not run.preempted.exists()
    start = time.monotonic()
    everybody[-1].kill()
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    _, alive = psutil.wait_procs(everybody, timeout=5)
    assert not alive
    assert time.monotonic() - start < 45
    newest = checkpoint.newest(run)
    assert newest
    assert max(losses(run)) - newest.manifest.step <= 5
