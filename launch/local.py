"""How training starts on this machine: `accelerate launch -m train.sft`.

One rank a GPU, with the strategy's accelerate config; without a GPU one process on the CPU.
Knows nothing of SLURM, and nothing of training.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import psutil

from pressroom.console import TOLD, UserError, log
from pressroom.gpus import count_gpus, most_ranks, needs_gpu
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def count_cpus() -> int:
    """CPUs that training may use here: OMP_NUM_THREADS, or else those of this process."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def num_ranks(recipe: Recipe, num_gpus: int) -> int:
    """One rank a GPU, of those GPUs over which the recipe's batch divides; at least one."""
    batch = recipe.batch
    ranks = most_ranks(batch, num_gpus)
    if num_gpus > ranks:
        log.warning(
            "using %d of %d GPUs: batch.global_batch_size %d in micro-batches of %d does not "
            "divide over more",
            *(ranks, num_gpus, batch.global_batch_size, batch.micro),
        )
    return ranks


def train_command(
    recipe: Recipe, run: RunDir, dataset: Path, *, num_gpus: int, num_cpus: int
) -> list[str]:
    """The command that trains a run on this machine: a pure function.

    Args:
        recipe: Says the strategy, whose accelerate config is used by more than one rank.
        run: The run directory.
        dataset: The dataset's folder.
        num_gpus: One rank each; 0 is one rank on the CPU.
        num_cpus: Divided over the ranks.

    Raises:
        UserError: The recipe needs a GPU, another number of them, or a tracker that is missing.
    """
    processes = max(num_gpus, 1)
    recipe.batch.gradient_accumulation_steps(processes)
    recipe.tracking.require()
    if not num_gpus and needs_gpu(recipe):
        raise UserError("this machine has no GPU:\n" + "\n".join(needs_gpu(recipe)))
    # A config is always named: accelerate would take the user's own default otherwise.
    config = recipe.parallel.strategy if processes > 1 else "single"
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", str(resources.files("accelerate_configs") / f"{config}.yaml")),
        *([] if num_gpus else ["--cpu"]),
        *("--num_machines", "1", "--num_processes", str(processes)),
        *("--num_cpu_threads_per_process", str(max(num_cpus // processes, 1))),
        *("-m", "train.sft", str(run.recipe)),
        *("--run", str(run.path), "--dataset", str(dataset)),
    ]


def run_to_end(what: str, command: Sequence[str], marker: Path | None = None) -> None:
    """Run a command, its output on this terminal.

    It has a process group of its own, to which this process hands on what it is told: to end
    one by a signal ends the other, launchers and ranks included.

    Args:
        what: What it does, for messages.
        command: The command.
        marker: A file by which its ranks say that they ended early when asked to. Then the first
            signal asks them, and the second ends them.

    Raises:
        UserError: The command failed.
        KeyboardInterrupt: This process was interrupted, and the command has ended.
        SystemExit: The same for another signal; or its ranks were asked to end by somebody else.
    """
    if marker:
        marker.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        code, received = _run(command, {TOLD: str(told)}, asks_first=marker is not None)
        if code == 0 and marker and marker.is_file():
            log.info("%s ended early, as asked; the same command goes on", what)
            received = received or [signal.SIGUSR2]
        if signal.SIGINT in received:
            raise KeyboardInterrupt
        if received:
            sys.exit(128 + received[0])
        if code and told.is_file():
            raise UserError(f"{what} ended with exit code {code}; its message stands above")
    if code:
        raise UserError(
            f"{what} was killed or crashed without a word of its own (exit code {code}), most "
            "likely for want of memory: batch.micro_batch_size and sequence_length are what "
            "takes it; `dmesg` or the job's log names what was killed"
        )


def _run(
    command: Sequence[str], variables: dict[str, str], *, asks_first: bool
) -> tuple[int, list[int]]:
    """The command's exit code, and the signals that came meanwhile."""
    # A stranger's train.py in the working directory must not be taken for ours.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **variables}
    if not count_gpus():
        environment.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found none
    received: list[int] = []
    # What this process was started to ignore, by nohup or as a background job, it ignores.
    heard = [n for n in _HANDED_ON if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.getsignal(n) for n in [*heard, signal.SIGUSR2]}
    # The launcher would die of USR2 and leave its ranks behind: it inherits that it is ignored.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:

        def hand_on(number: int, frame: object) -> None:
            received.append(number)
            if asks_first and len(received) == 1:
                log.info("saving at the end of this step, then ending; once more ends it at once")
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM if number == signal.SIGUSR2 else number)

        for number in before:
            signal.signal(number, hand_on)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(1), received
                if asks_first and received:
                    _ask(process.pid)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _ask(launcher: int) -> None:
    """Ask the ranks of a launcher to save and end.

    Again and again: one that has only just started does not listen yet.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        for rank in psutil.Process(launcher).children():
            rank.send_signal(signal.SIGUSR2)
