"""Train on this node: its copy of the base, its launcher, the signals, rank 0's words.

The same on the first node and on every other. Knows nothing of who decided what is trained.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launch import process
from launch.allocation import Allocation, node_of
from launch.command import train_command
from launch.local import failure
from launch.rank_environment import rank_environment
from pressroom import quantized_base
from pressroom.base_model import model_folder
from pressroom.console import TOLD, UserError, log
from pressroom.gpus import ask_driver, count_gpus
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.staging import stage

NODE_LOCAL = "PRESSROOM_NODE_LOCAL"
"""Environment: a folder on each node's own disk, where the quantized base is copied first."""
RESERVE_SECONDS = 20.0
"""Before the end of a job, in which SLURM can still be asked to queue it again."""
CALL_SECONDS = 60.0
"""For one call of SLURM's commands."""


def gpus_of(here: Allocation) -> tuple[int, list[str]]:
    """The GPUs of this node that the job has, and what is wrong with them."""
    if not here.num_gpus:
        return count_gpus(), []
    driver = ask_driver()
    if driver is None:
        return 0, [f"SLURM gives {_gpus(here)}, and this node has no NVIDIA driver"]
    if driver.error:
        return 0, [f"SLURM gives {_gpus(here)}, and their driver fails: {driver.error}"]
    if len(driver.gpus) < here.num_gpus:
        return 0, [f"SLURM gives {_gpus(here)}, and the driver has {len(driver.gpus)}"]
    return here.num_gpus, []


def _gpus(here: Allocation) -> str:
    return f"{here.num_gpus} GPU{'s' * (here.num_gpus > 1)}"


def train_here(
    run: RunDir,
    dataset: Path,
    here: Allocation,
    num_gpus: int,
    asked: Callable[[], bool],
    gives_up: Callable[[], bool] = lambda: False,
) -> bool:
    """Train on this node until all ranks have ended, here and elsewhere.

    Args:
        run: The run directory, whose recipe is resolved.
        dataset: Its dataset.
        here: This node's part of the job.
        num_gpus: One rank each; 0 is one on the CPU.
        asked: Whether the ranks are to save and end, from before they were started.
        gives_up: The same, asked every second, for a run that is not worth its time.

    Returns:
        Whether the run ended early, as it was asked to, and may be queued again.

    Raises:
        UserError: The ranks failed.
    """
    node = node_of(here, num_gpus)
    recipe = run.load_recipe()
    command = train_command(recipe, run, dataset, node)
    watch = _Watch(run, here)

    def look(is_asked: bool) -> bool:
        watch.look(is_asked)
        return gives_up()

    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        staged = _staged(recipe)
        variables = rank_environment(os.environ, here, node, run, staged) | {TOLD: str(told)}
        if asked():
            return True
        ended = process.run(
            command,
            variables,
            always_ask=(process.ASK,),
            asked_before=asked,
            each_second=look,
        )
        watch.show()
        # All has been saved, however ranks then end: NCCL can crash when it is taken down.
        if run.preempted.is_file():
            return True
        if ended.code == 0:
            return False
        for number in ended.received:
            if number != process.ASK:
                sys.exit(128 + number)
        raise failure(f"train on {here.host}", ended.code, told)


def _staged(recipe: Recipe) -> str:
    """The folder on this node's own disk that has a copy of the quantized base; empty for none.

    A copy that cannot be made costs time, not the job: the ranks then read the shared base.
    """
    folder = os.environ.get(NODE_LOCAL, "")
    if folder and ("$" in folder or not folder.startswith("/")):
        log.warning("reading the base from the shared disk: node_local is %s on this node", folder)
        return ""
    model = model_folder(recipe.model)
    place = quantized_base.find(model, recipe.quantization, recipe.memory.precision)
    if not folder or place is None:
        return ""
    try:
        stage(place, Path(folder))
    except (UserError, OSError) as error:
        log.warning("reading the base from the shared disk: %s", error)
        return ""
    return folder


class _Watch:
    """Looks after the ranks every second, on the first node: shows what rank 0 says."""

    def __init__(self, run: RunDir, here: Allocation) -> None:
        self._log = run.rank_log(0)
        self._here = here
        self._shown = self._log.stat().st_size if self._log.is_file() else 0
        self._end = math.inf

    def look(self, asked: bool) -> None:
        """Show what is new; leave ranks that hang when they are asked to end."""
        if self._here.node_rank:
            return
        self.show()
        if asked and self._end == math.inf:
            self._end = time.monotonic() + seconds_left(self._here.name) - RESERVE_SECONDS
        if time.monotonic() > self._end:
            log.warning("the ranks do not end in time: they go on from the newest checkpoint")
            queue_again(self._here.name)

    def show(self) -> None:
        """Show what rank 0 has said since."""
        if self._here.node_rank or not self._log.is_file():
            return
        with self._log.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        self._shown += len(new)
        sys.stdout.buffer.write(new)
        sys.stdout.flush()


def seconds_left(job: str) -> float:
    """Until a job reaches its time limit; infinite where SLURM does not say."""
    try:
        said = _call("squeue", "--noheader", "--jobs", job, "--format", "%L")
        days, _, clock = said.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
    except (OSError, ValueError, subprocess.SubprocessError):
        return math.inf
    seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return float(int(days or 0) * 86400 + seconds)


def job_runs(job: str) -> bool:
    """Whether SLURM says that a job runs, or says nothing: then it is not over either.

    One task of an array has the number that all of it has: then squeue lists the others too.
    """
    try:
        said = _call("squeue", "--noheader", "--jobs", job, "--format", "%A %T")
        return f"{job} RUNNING" in said.splitlines()
    except (OSError, subprocess.SubprocessError):
        return True


def queue_again(job: str) -> None:
    """Have SLURM queue this job again, and wait to be ended by it: the only place that does.

    Raises:
        UserError: SLURM does not.
    """
    log.info("queueing job %s again", job)
    try:
        _call("scontrol", "requeue", job)
    except OSError as error:
        reason = str(error)
    except subprocess.TimeoutExpired:
        reason = f"scontrol does not answer for {CALL_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()
    else:
        time.sleep(2 * CALL_SECONDS)
        reason = "it was not ended"
    raise UserError(f"job {job} could not be queued again: {reason}; the same command goes on")


def _call(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=CALL_SECONDS
    ).stdout.strip()
