"""Articles -> a tokenized, packed dataset: `pressroom prep RECIPE`.

    scan     records -> cleaned articles, rejects      a portion of a file each
    decide   duplicates, the held-out split            all articles, no texts
    pack     articles -> ids [n], labels [n] -> rows   a shard each
    finish   data/NAME-HASH/                           appears when all of it is there

Any number of workers do this together, processes of one machine or tasks of a job array: the same
bytes come out, whatever their number and whenever they are killed. The same command goes on where
it stopped. Knows no model, only its tokenizer.
"""

import ctypes
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from data_prep.job import UNIT_BYTES, Job
from data_prep.steps import Steps
from data_prep.work import AllDoneError, Worker
from pressroom import dataset, seal
from pressroom.console import entry, log, say
from pressroom.dataset import Manifest
from pressroom.files import require_home
from pressroom.locks import claim, joined
from pressroom.recipe import Recipe

_PR_SET_PDEATHSIG = 1


class Task(click.ParamType[tuple[int, int]]):
    """`3/8`: the fourth of eight."""

    name = "K/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read it."""
        number, _, count = str(value).partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            self.fail(f"{value!r} is not K/N, K from 0 to N - 1", param, ctx)
        return int(number), int(count)


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--num-workers", type=click.IntRange(min=1), help="Processes. [one a CPU]")
@click.option("--group", default="", hidden=True, help="Of several tasks, what they share.")
@click.option("--task", type=Task(), default="0/1", hidden=True, help="Which of how many.")
def main(
    recipe: str,
    overrides: tuple[str, ...],
    num_workers: int | None,
    group: str,
    task: tuple[int, int],
) -> None:
    """Articles -> tokenized, packed Arrow shards, in data/NAME-HASH/."""
    workers = num_workers or len(os.sched_getaffinity(0))
    try:
        folder = prepare(
            Recipe.load(recipe, overrides), num_workers=workers, group=group, task=task
        )
    except KeyboardInterrupt:
        log.info("what is finished is kept: the same command goes on")
        raise
    say(summary(folder, Manifest.read(folder)))


def prepare(
    recipe: Recipe,
    *,
    num_workers: int = 1,
    group: str = "",
    task: tuple[int, int] = (0, 1),
    unit_bytes: int = UNIT_BYTES,
) -> Path:
    """Make the dataset of a recipe, unless it is there already.

    Args:
        recipe: Which articles, and how.
        num_workers: Processes of this machine; its CPUs are divided over them.
        group: What tasks have in common that work on it together; another's is refused.
        task: Which of them this one is, of how many.
        unit_bytes: Of the text in a shard.

    Returns:
        Its folder.

    Raises:
        UserError: The articles or the tokenizer are missing, nothing is left to train on, or
            somebody else makes it just now.
    """
    require_home()
    job = Job.of(recipe, unit_bytes)
    if job.folder.is_dir():
        manifest = dataset.check(job.folder, job.spec)
        if not group:  # one of several tasks may come when the others have just made it
            seal.require_whole(job.folder, manifest)
        log.info("%s is there already", job.folder)
        _clear(job)
        return job.folder
    group = group or f"process {os.getpid()} on {socket.gethostname()}"
    number, count = task
    # A process for a few kilobytes would take longer to start than to end.
    size = sum(path.stat().st_size for path in job.files.values())
    here = max(1, min(num_workers, -(-size // job.portion_bytes)))
    first, all_workers = number * here, count * here
    helpers = range(first + 1, first + here)
    with (
        joined(job.lock, str(job.folder), group),
        _helpers(job, group, helpers, all_workers),
    ):
        _work(job, first, all_workers, shows=True)
    _clear(job)
    return job.folder


def _clear(job: Job) -> None:
    """Remove what was left of making a dataset, if this is the last one at it.

    Under another name first: half a work folder would be taken for a whole one.
    """
    old = job.work.with_name(f"{job.work.name}.old")
    with suppress(OSError), claim(job.lock) as is_ours:
        if is_ours:
            shutil.rmtree(old, ignore_errors=True)
            job.work.replace(old)
    shutil.rmtree(old, ignore_errors=True)
    for other in job.work.parent.glob(f".{job.recipe.name}-{'?' * len(job.key)}.prep"):
        if other != job.work:
            log.info("%s is begun: its own recipe goes on with it, or delete it", other)


def _work(job: Job, number: int, count: int, *, shows: bool) -> None:
    worker = Worker(number, count, job.folder.is_dir, shows)
    try:
        for step in Steps(job).in_order():
            worker.complete(step)
    except AllDoneError:
        pass
    except OSError:
        if not job.folder.is_dir():  # else others have made it, and cleared away what was read here
            raise


@contextmanager
def _helpers(job: Job, group: str, numbers: range, count: int) -> Iterator[None]:
    """Other workers on this machine, for as long as the block runs."""
    # Each has its share of the CPUs for the tokenizer's threads.
    threads = max(1, len(os.sched_getaffinity(0)) // (len(numbers) + 1))
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    start = multiprocessing.get_context("spawn").Process
    helpers = [
        start(target=_help, args=(job, group, number, count, os.getpid()), daemon=True)
        for number in numbers
    ]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to them too
    for helper in helpers:
        helper.start()
    signal.signal(signal.SIGINT, before)
    try:
        yield
        for helper in helpers:
            helper.join()
    finally:
        for helper in helpers:
            helper.kill()


def _help(job: Job, group: str, number: int, count: int, parent: int) -> None:
    """Work beside the process that shows what all do; it meets, and tells, what stops this one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    with suppress(Exception), joined(job.lock, str(job.folder), group):
        _work(job, number, count, shows=False)


def summary(folder: Path, manifest: Manifest) -> str:
    """What is in a dataset, for a person."""
    rejected = manifest.counts["rejected"]
    causes = ", ".join(f"{count:,} {cause}" for cause, count in rejected.items())
    lines = [
        f"{folder}",
        f"  {manifest.counts['read']:,} articles read = {manifest.counts['train']:,} to train on"
        f" + {manifest.counts['held_out']:,} held out + {sum(rejected.values()):,} rejected"
        + (f" ({causes}; rejects.jsonl lists them)" if rejected else ""),
    ]
    for split_name in dataset.SPLITS:
        parts = [shard for shard in manifest.shards if shard.split == split_name]
        lines.append(
            f"  {split_name}: {sum(s.rows for s in parts):,} rows of "
            f"{manifest.spec['sequence_length']:,}, {sum(s.tokens for s in parts):,} tokens, "
            f"{sum(s.trained_tokens for s in parts):,} of them trained on, "
            f"{manifest.packing[split_name]:.2%} full"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    entry(main)
