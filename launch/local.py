"""How stages run on this machine: training over its GPUs, or on its CPU.

Knows nothing of SLURM, and nothing of training.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import process
from launch.command import Node
from pressroom.console import TOLD, UserError, log
from pressroom.gpus import count_gpus, most_ranks
from pressroom.recipe import Recipe


def count_cpus() -> int:
    """CPUs that training may use here: OMP_NUM_THREADS, or else those of this process."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def this_node(recipe: Recipe) -> Node:
    """This machine, with the GPUs that the recipe's batch divides over."""
    found = count_gpus()
    return Node(num_gpus=num_ranks(recipe, found) if found else 0, num_cpus=count_cpus())


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


class GivenUp(Exception):
    """A training was ended before its time, as not worth its time: no error, and no result."""


def run_to_end(
    what: str,
    command: Sequence[str],
    marker: Path | None = None,
    gives_up: Callable[[], bool] = lambda: False,
) -> None:
    """Run a command, its output on this terminal.

    Args:
        what: What it does, for messages.
        command: The command.
        marker: A file by which its ranks say that they ended early when asked to. Then the first
            signal asks them, and the second ends them.
        gives_up: Asked every second whether the ranks are to save and end.

    Raises:
        UserError: The command failed.
        GivenUp: It ended because `gives_up` said so.
        KeyboardInterrupt: This process was interrupted, and the command has ended.
        SystemExit: The same for another signal; or its ranks were asked to end by somebody else.
    """
    if marker:
        marker.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        # A stranger's train.py in the working directory must not be taken for ours.
        variables = {**os.environ, "PYTHONSAFEPATH": "1", TOLD: str(told)}
        if not count_gpus():
            variables.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found none
        said = False

        def look(asked: bool) -> bool:
            nonlocal said
            said = said or gives_up()
            return said

        ended = process.run(command, variables, first_asks=marker is not None, each_second=look)
        received = ended.received
        if ended.code == 0 and marker and marker.is_file():
            if said and not received:
                raise GivenUp(what)
            log.info("%s ended early, as asked; the same command goes on", what)
            received = received or [process.ASK]
        if signal.SIGINT in received:
            raise KeyboardInterrupt
        if received:
            sys.exit(128 + received[0])
        if ended.code:
            raise failure(what, ended.code, told)


class Failure(UserError):
    """A command of ours failed."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said
        """In its own words, or ours where it had none."""


def failure(what: str, code: int, told: Path) -> Failure:
    """Why a command failed, for a person who has seen what it said, and for one who has not.

    Args:
        what: What it did.
        code: Its exit code.
        told: Where it has written what was wrong (`console.TOLD`), if it has.
    """
    if told.is_file():
        words = told.read_text(encoding="utf-8").strip()
        if words.startswith("Traceback"):
            words = words.splitlines()[-1]
        return Failure(f"{what} ended with exit code {code}; its message stands above", words)
    killed = (
        f"{what} was killed or crashed without a word of its own (exit code {code}), most "
        "likely for want of memory: batch.micro_batch_size and sequence_length are what "
        "takes it; `dmesg` or the job's log names what was killed"
    )
    return Failure(killed, killed)
