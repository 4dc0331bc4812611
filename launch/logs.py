"""`pressroom logs RUN`: what a run's ranks say, or a job's own output, to its end or as it grows.

Knows nothing of what stands in a log.
"""

import difflib
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from launch import queue
from launch.run_facts import all_jobs
from launch.watch import look
from pressroom.console import UserError, entry, harmless, log, say
from pressroom.locks import is_locked
from pressroom.run_dir import RunDir
from pressroom.runs import find_run
from pressroom.standing import standing

POLL_SECONDS = 0.5
ASK_SECONDS = 10.0
"""How often SLURM is asked whether a run is over."""
_BLOCK = 16 * 1024


@click.command()
@click.argument("run_name", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over, requeued or not.")
@click.option("--rank", type=click.IntRange(0), help="Of training; 0 when not given.")
@click.option("--stage", help="The own output of the newest job of this stage.")
@click.option("--task", type=click.IntRange(0), help="Of prep, where several share its work.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=40, show_default=True, help="How many, last."
)
def main(
    run_name: str,
    follow: bool,
    rank: int | None,
    stage: str | None,
    task: int | None,
    lines: int,
) -> None:
    """What a run says: rank 0 of its training, or before that the job's own output."""
    run = find_run(run_name)
    if stage is not None:
        _require_stage(run, stage, rank)
    if task is not None:
        stage = _stage_of(run, stage, rank, task)
    path = find_log(run, rank, stage, task)
    if not follow:
        if path is None:
            log.info("%s: %s", run.path, _why_none(run, stage))
        else:
            _tell_other(run, path)
            Reader(path, lines).show(rest=True)
        return
    try:
        _follow(run, rank, stage, task, lines)
    except KeyboardInterrupt:
        sys.exit(130)


def _require_stage(run: RunDir, stage: str, rank: int | None) -> None:
    if rank is not None:
        raise UserError("--rank and --stage: ranks are training's; give one of the two")
    stages = list(dict.fromkeys(job.stage for job in all_jobs(run)))
    if stage not in stages:
        close = difflib.get_close_matches(stage, stages, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        has = f"it has jobs of: {', '.join(stages)}" if stages else "it has no jobs"
        raise UserError(f"--stage {stage}: {run.path} has no job of that stage{hint or '; ' + has}")


def _stage_of(run: RunDir, stage: str | None, rank: int | None, task: int) -> str:
    """The stage whose task is asked for, when it is said and when it is not."""
    if rank is not None:
        raise UserError("--rank and --task: ranks are training's; give one of the two")
    jobs = {job.stage: job for job in all_jobs(run) if stage in (None, job.stage)}
    several = [job for job in jobs.values() if job.tasks > 1]
    if not several:
        which = (
            f"the newest job of {stage} is a single task" if stage else "no job is several tasks"
        )
        raise UserError(f"--task {task}: {run.path}: {which}")
    job = several[-1]
    if task >= job.tasks:
        raise UserError(f"--task {task}: {job.stage} has {job.tasks} tasks, 0 to {job.tasks - 1}")
    return job.stage


def find_log(
    run: RunDir, rank: int | None, stage: str | None, task: int | None = None
) -> Path | None:
    """The file to show; None while there is none.

    Of several tasks that share a stage's work it is that of the first which has begun, unless one
    is asked for.

    Raises:
        UserError: Training has fewer ranks.
    """
    if stage is None:
        if run.rank_log(rank or 0).is_file():
            return run.rank_log(rank or 0)
        if ranks := len(list(run.logs.glob("rank-*.log"))):
            raise UserError(f"--rank {rank or 0}: has logs of {ranks} ranks, 0 to {ranks - 1}")
    for job in reversed(all_jobs(run)):
        names = job.names if task is None else job.names[task : task + 1]
        own = [path for path in (run.job_log(name, 0) for name in names) if path.is_file()]
        if stage in (None, job.stage) and own:
            return own[0]
        if stage == job.stage:
            return None  # an older job's would be another story
    return None


def _tell_other(run: RunDir, path: Path) -> None:
    """Say what is shown where that is no rank's log."""
    if path.parent != run.logs:
        log.info("%s:", path)


def _why_none(run: RunDir, stage: str | None) -> str:
    jobs = [job for job in all_jobs(run) if stage in (None, job.stage)]
    if not jobs:
        return "no log: what it says goes to the terminal that started it"
    job = jobs[-1]
    if not (run.jobs / f"{job.job}.json").is_file():
        return (
            f"no log of a rank yet; job {job.job} was started by sbatch, and its own output is "
            f"where `scontrol show job {job.job}` says (StdOut)"
        )
    if stage is None:
        return f"no log yet: {_stands(run)}"
    now = queue.states([job.job]).get(job.job)
    is_so = f"is {now.state.lower()} {now.reason}".strip() if now else "is not known to SLURM"
    return f"no log yet; job {job.job} ({job.stage}) {is_so}"


def _stands(run: RunDir) -> str:
    (now,) = look([run])
    return ", ".join(filter(None, (now.state, now.stage, now.note)))


def _follow(run: RunDir, rank: int | None, stage: str | None, task: int | None, lines: int) -> None:
    """Show what comes until the run is over; from a job's own output on to the rank's log."""
    reader: Reader | None = None
    is_over, ask_at = False, 0.0
    if find_log(run, rank, stage, task) is None:
        log.info("%s: %s", run.path, _why_none(run, stage))
    while not is_over:
        if time.monotonic() >= ask_at:
            is_over, ask_at = _is_over(run, stage), time.monotonic() + ASK_SECONDS
        with suppress(UserError):  # ranks begin their logs one after the other
            path = find_log(run, rank, stage, task)
            if path and (reader is None or path != reader.path):
                if reader:
                    reader.show(rest=True)
                _tell_other(run, path)
                reader = Reader(path, None if reader else lines)
        if reader:
            reader.show(rest=is_over)
        if not is_over:
            time.sleep(POLL_SECONDS)
    if reader is None:
        log.info("%s: %s", run.path, _why_none(run, stage))
        return
    follow = "; --stage STAGE -f follows its own log" if _stands(run).startswith("running") else ""
    log.info("%s: %s%s", run.path, _stands(run), follow)


def _is_over(run: RunDir, stage: str | None) -> bool:
    """Whether nothing more will be said: by training, or by another stage's job."""
    jobs = {job.stage: job for job in all_jobs(run)}
    if not jobs:
        return not is_locked(run.lock)
    if not queue.is_here():
        return standing(run) in ("failed", "finished")
    job = jobs.get(stage or "train") or list(jobs.values())[-1]
    try:
        now = queue.states([job.job]).get(job.job)
    except UserError as error:  # SLURM may be back in a moment
        log.warning("%s", error)
        return False
    return now is None or not now.alive or now.never_starts


class Reader:
    """A file as it grows: whole lines, as a terminal would show them, without secrets.

    Args:
        path: The file.
        lines: How many of those that are there are shown; None: all of them.
    """

    def __init__(self, path: Path, lines: int | None) -> None:
        self.path = path
        self._at = 0 if lines is None else start_of_last(path, lines)

    def show(self, *, rest: bool) -> None:
        """Write what is new; with `rest`, a line too that has not ended."""
        with self.path.open("rb") as file:  # anew each time: so NFS looks at what others wrote
            if file.seek(0, os.SEEK_END) < self._at:  # somebody has emptied it
                self._at = 0
            file.seek(self._at)
            for line in file:
                if not (rest or line.endswith(b"\n")):
                    break
                self._at += len(line)
                text = line.decode(errors="replace").rstrip("\r\n")
                say(harmless(text.rpartition("\r")[2]))  # of a bar, how it was left


def start_of_last(path: Path, lines: int) -> int:
    """Where the last lines of a file begin, in bytes from its start."""
    with path.open("rb") as file:
        size = start = file.seek(0, os.SEEK_END)
        end = b""
        while start and end[:-1].count(b"\n") < lines:
            start = max(0, start - max(_BLOCK, size - start))
            file.seek(start)
            end = file.read(size - start)
    if not lines:
        return size
    # Without its last byte: the end of the last line divides nothing.
    before, *last = end[:-1].rsplit(b"\n", lines)
    return start + len(before) + 1 if len(last) == lines else start


if __name__ == "__main__":
    entry(main)
