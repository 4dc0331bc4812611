"""`pressroom runs` and `pressroom cancel`: runs watched and ended, from any shell.

All that is known stands in run directories and in SLURM. Knows nothing of how jobs are submitted.
"""

import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from launch import queue
from launch.queue import JobState
from launch.run_facts import all_jobs, facts_of
from launch.run_state import RunState, run_state
from pressroom.console import UserError, entry, harmless, human_seconds, log, redact, say
from pressroom.experiment import find_experiment
from pressroom.files import home
from pressroom.locks import is_locked
from pressroom.run_dir import RunDir
from pressroom.runs import every_run, named

_MOST_RUNS = 20
_COLOURS = {
    **{"running": "green", "failed": "red", "stopped": "red"},
    **dict.fromkeys(("queued", "requeued", "preempted"), "yellow"),
}
_HEAD = ("run", "state", "stage", "step", "loss", "tokens/s", "left", "job", "")
_NUMBERS = ("step", "loss", "tokens/s", "left", "job")


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help=f"All of them, not the newest {_MOST_RUNS}.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def runs(name: str | None, every: bool, as_json: bool) -> None:
    """What is queued, running, done or failed: all runs, or those of NAME."""
    found = _chosen(name) if name else every_run()
    shown = found if every else found[:_MOST_RUNS]
    states = look(shown)
    if as_json:
        say(json.dumps([_plain(*pair) for pair in zip(shown, states, strict=True)], indent=2))
        return
    if not found:
        log.info("no runs yet under %s", (home() / "runs").absolute())
        return
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else None
    paint = on_terminal and not os.environ.get("NO_COLOR")
    say("\n".join(table([_cells(*p) for p in zip(shown, states, strict=True)], width, paint)))
    if len(shown) < len(found):
        log.info("the newest %d of %d; --all shows the others", len(shown), len(found))


def look(shown: Sequence[RunDir]) -> list[RunState]:
    """How runs stand now, SLURM asked once for all of them."""
    facts = [facts_of(run) for run in shown]
    ids = {job.job for found in facts if found.unfinished for job in found.jobs}
    known: dict[str, JobState] | None = None
    if not ids or queue.is_here():
        try:
            known = queue.states(ids)
        except UserError as error:
            log.warning("%s; what follows is what the runs' own files say", error)
    return [run_state(found, known) for found in facts]


def _chosen(name: str) -> list[RunDir]:
    """The runs that a name means, of an experiment its points."""
    try:
        return named(name)
    except UserError:
        experiment = find_experiment(name)
        if experiment is None:
            raise
    every = map(experiment.run, experiment.definition().points)
    return [run for run in every if run.recipe.is_file()]


def _plain(run: RunDir, state: RunState) -> dict[str, object]:
    """A row as JSON values; what is no number is null."""
    values = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in asdict(state).items()
    }
    return {
        "run": _name(run),
        "path": str(run.path.absolute()),
        **values,
        "note": redact(state.note),
    }


def _name(run: RunDir) -> str:
    return run.title


def _cells(run: RunDir, state: RunState) -> list[str]:
    """A row of the table, as `_HEAD` names its cells; what is not known is empty."""
    of = f"/{state.num_steps:,}" if state.num_steps else ""
    speed, left = state.tokens_per_second, state.seconds_left
    cells = (
        *(_name(run), state.state, state.stage),
        "" if state.step is None else f"{state.step:,}{of}",
        "" if state.loss is None else f"{state.loss:.4g}",
        "" if speed is None else f"{speed:,.0f}",
        "" if left is None else human_seconds(left),
        *(state.job, state.note),
    )
    return [harmless(" ".join(redact(cell).split())) for cell in cells]  # before any is cut


def table(rows: Sequence[Sequence[str]], width: int | None, paint: bool) -> list[str]:
    """Lines of a table, a head above them; columns that are empty everywhere are left out.

    Args:
        rows: Cells, as `_HEAD` names them.
        width: Characters of a line; None: as many as it needs.
        paint: Colour the states that want to be seen.
    """
    sizes = {
        n: max(len(head), *(len(row[n]) for row in rows))
        for n, head in enumerate(_HEAD)
        if any(row[n] for row in rows)
    }
    before = sizes[0] + 2
    lines = []
    for row in [_HEAD, *rows]:
        cells = [
            row[n].rjust(size) if _HEAD[n] in _NUMBERS else row[n].ljust(size)
            for n, size in sizes.items()
        ]
        line = "  ".join(cells).rstrip()
        if width is not None and len(line) > width:
            line = line[: width - 1] + "…"
        if paint and row[1] in _COLOURS:
            end = before + len(row[1])
            painted = click.style(line[before:end], fg=_COLOURS[row[1]])
            line = line[:before] + painted + line[end:]
        lines.append(line)
    return lines


@click.command()
@click.argument("run_name", metavar="RUN|EXPERIMENT")
def cancel(run_name: str) -> None:
    """Cancel all jobs of a run, or of an experiment's points, that are queued or running."""
    chosen = _chosen(run_name)
    if len(chosen) != 1:
        _cancel_points(chosen)
        return
    run = chosen[0]
    jobs = all_jobs(run)
    if facts_of(run).unfinished and not queue.is_here():
        raise UserError(f"{run.path}: has jobs, and there is no SLURM on this machine to end them")
    known = queue.states([job.job for job in jobs])
    alive = [job for job in jobs if job.job in known and known[job.job].alive]
    if not alive:
        if is_locked(run.lock):
            raise UserError(f"{run.path}: {_how_to_end(run)}")
        say(f"{run.path}: nothing to cancel; no job of it is queued or running")
    ids = {job.job for job in alive}
    depends = [job for job in alive if ids & set(job.after)]
    # Those that wait for others first: none of them starts meanwhile.
    for group in (depends, [job for job in alive if job not in depends]):
        if group:
            queue.cancel([job.job for job in group])
        for job in group:
            where = f" on {known[job.job].nodes}" if known[job.job].nodes else ""
            say(f"cancelled job {job.job}: {job.stage}, {known[job.job].state.lower()}{where}")


def _cancel_points(points: Sequence[RunDir]) -> None:
    """Cancel what is queued or runs of an experiment's points, all at once."""
    jobs = {job.job: point for point in points for job in all_jobs(point)}
    known = queue.states(list(jobs))
    alive = [job for job in jobs if job in known and known[job].alive]
    if not alive:
        say("nothing to cancel; no job of its points is queued or running")
        return
    queue.cancel(alive)
    for job in alive:
        say(f"cancelled job {job}: {jobs[job].title}, {known[job].state.lower()}")


def _how_to_end(run: RunDir) -> str:
    """Who trains a run without SLURM, and the command that ends it.

    The process that the lock names is a rank. USR2 there is what preemption is: all ranks save
    at the end of their step, and whoever started them ends too.
    """
    found = re.match(r"process (\d+) on (\S+)", run.lock.read_text(errors="replace"))
    if not found:
        return "is trained without SLURM, by a process that does not say its name"
    process, host = found.groups()
    where = "" if host == socket.gethostname() else f" on {host}"
    return (
        f"is trained without SLURM, by process {process}{where}; `kill -USR2 {process}`{where} has "
        "it save at the end of its step, and end"
    )


if __name__ == "__main__":
    entry(runs)
