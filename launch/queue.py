"""What SLURM says of jobs now, and the end of jobs: squeue, sacct where it keeps accounts, scancel.

A job that SLURM no longer knows is absent from the answer: without accounting that is every job
some minutes after its end. Every call is bounded. Knows nothing of runs.
"""

import os
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from launch.jobs import number_of
from pressroom.console import UserError, log

SECONDS = 30
"""How long a command of SLURM may take."""
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
}
_WIDTHS = {
    **{"ArrayJobID": 20, "State": 24, "RestartCnt": 12, "StartTime": 24, "EndTime": 24},
    **{"Reason": 160, "NodeList": 400, "ArrayTaskID": 12},
}
"""squeue's fields, and how wide it is to print them: separators can stand in a reason. ArrayJobID
is, of a job that is no array, its own."""
_ACCOUNTED = ("JobID", "State", "NodeList")


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What SLURM says of a job."""

    state: str
    """PENDING, RUNNING, COMPLETED, TIMEOUT and so on, as SLURM calls it."""
    reason: str = ""
    """Why it waits, or why it ended."""
    nodes: str = ""
    """Where it runs or ran: `node[1-2]`."""
    start: int | None = None
    """When it started, or SLURM expects it to, in seconds since 1970."""
    end: int | None = None
    """When it ended, or its time limit ends it, in seconds since 1970."""
    restarts: int = 0
    """How often it was queued again; 0 where sacct alone knows it."""
    tasks: str = ""
    """Of an array: how many of its tasks are in which state."""

    @property
    def alive(self) -> bool:
        """Whether it may still do something: a state that nobody here knows counts too."""
        return self.state not in _ENDED

    @property
    def waits(self) -> bool:
        """Whether it is queued, for the first time or again, and on no node."""
        return self.alive and (self.state == "PENDING" or not self.nodes)

    @property
    def never_starts(self) -> bool:
        """Whether a job that it depends on has ended badly."""
        return self.waits and self.reason == "DependencyNeverSatisfied"


def is_here() -> bool:
    """Whether SLURM can be asked on this machine."""
    return shutil.which("squeue") is not None


def states(ids: Collection[str]) -> dict[str, JobState]:
    """What SLURM says of jobs; nothing on a machine without it.

    Args:
        ids: SLURM's ids; `12` is all tasks of an array together, `12_3` one of them.

    Returns:
        Id -> state, of those that SLURM still knows.

    Raises:
        UserError: SLURM is here, and does not answer or refuses.
    """
    wanted = sorted(set(ids), key=number_of)
    found = _queued(wanted) if wanted else None
    if found is None:
        return {}
    forgotten = [job for job in wanted if job not in found]
    return found | (_accounted(forgotten) if forgotten else {})


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already are no error.

    Raises:
        UserError: There is no SLURM here, it does not answer, or the jobs are somebody else's.
    """
    done = ask("scancel", *ids)
    if done is None:
        raise UserError("scancel: not on this machine; cancel on a node that can submit jobs")
    over = ("already completing or completed", "Invalid job id")
    refused = [line for line in done.stderr.splitlines() if not any(o in line for o in over)]
    if done.returncode and refused:
        raise UserError("\n".join(refused))


def _queued(wanted: Sequence[str]) -> dict[str, JobState] | None:
    """What squeue knows; None where there is none."""
    fields = ",".join(f"{name}:{width}" for name, width in _WIDTHS.items())
    every = ("squeue", "--noheader", "--states=all", "--array", f"--Format={fields}")
    done = ask(*every, f"--jobs={','.join(wanted)}")
    if done and done.returncode and "Invalid job id" in done.stderr:
        done = ask(*every, f"--user={os.getuid()}")  # it says so of a single one that is over
    if done is None:
        return None
    if done.returncode:
        raise UserError(f"squeue: {_last_line(done)}")
    return {job: state for job, state in parse_queue(done.stdout).items() if job in wanted}


def parse_queue(text: str) -> dict[str, JobState]:
    """The table of squeue -> id -> state; a line without an id, as a cluster's name, is none."""
    found = defaultdict(list)
    for line in text.splitlines():
        cells, at = {}, 0
        for name, width in _WIDTHS.items():
            cells[name], at = line[at : at + width].strip(), at + width
        if cells["ArrayJobID"].isdigit():
            task = JobState(
                state=cells["State"],
                reason="" if cells["Reason"] == "None" else cells["Reason"],
                nodes=cells["NodeList"],
                start=_number(cells["StartTime"]),
                end=_number(cells["EndTime"]),
                restarts=_number(cells["RestartCnt"]) or 0,
            )
            found[cells["ArrayJobID"]].append(task)
            if cells["ArrayTaskID"].isdigit():
                found[f"{cells['ArrayJobID']}_{cells['ArrayTaskID']}"].append(task)
    return _jobs(found)


def _jobs(tasks: Mapping[str, Sequence[JobState]]) -> dict[str, JobState]:
    """Id -> what its tasks are together: the most alive of them; when all are over, the worst."""

    def weight(task: JobState) -> tuple[bool, ...]:
        is_active = task.alive and not task.waits
        order = ("RUNNING", "COMPLETED", "CANCELLED")
        runs, is_good, was_told_to = (task.state == state for state in order)
        return task.alive, is_active, runs, not is_good, not was_told_to

    found = {}
    for job, each in tasks.items():
        first = max(each, key=weight)
        nodes = dict.fromkeys(task.nodes for task in each if task.state == first.state)
        counts = Counter(task.state.lower() for task in each)
        words = [f"{count} {state}" for state, count in sorted(counts.items())]
        several = ", ".join(words) if len(each) > 1 else ""
        found[job] = replace(first, nodes=",".join(filter(None, nodes)), tasks=several)
    return found


def _accounted(forgotten: Sequence[str]) -> dict[str, JobState]:
    """How jobs ended that squeue has forgotten; nothing where SLURM keeps no accounts.

    No state hangs on it: that it fails or is slow is no error.
    """
    fields = ",".join(_ACCOUNTED)
    only = ("--allocations", "--allusers", "--noheader", "--parsable2", f"--format={fields}")
    try:
        done = ask("sacct", *only, f"--jobs={','.join(forgotten)}")
    except UserError as error:
        log.warning("%s; jobs that squeue has forgotten count as gone", error)
        return {}
    found = parse_accounts(done.stdout) if done and not done.returncode else {}
    # What accounts call running, and squeue does not know, was lost with a controller.
    return {job: state for job, state in found.items() if not state.alive}


def parse_accounts(text: str) -> dict[str, JobState]:
    """The lines of sacct -> id -> state; `7_2` and `7_[0-3]` are tasks of the array 7."""
    found = defaultdict(list)
    for line in text.splitlines():
        cells = line.split("|")
        job = cells[0].partition("_")[0]
        if len(cells) == len(_ACCOUNTED) and job.isdigit() and cells[1]:
            nodes = "" if cells[2] == "None assigned" else cells[2]
            state = cells[1].split()[0]  # CANCELLED by 0
            found[job].append(JobState(state=state, nodes=nodes))
            if cells[0].replace("_", "").isdigit() and "_" in cells[0]:
                found[cells[0]].append(JobState(state=state, nodes=nodes))
    return _jobs(found)


def ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Run a command of SLURM; None where there is none.

    Raises:
        UserError: It does not answer.
    """
    # Filters and formats that a user has set for own calls would change the answer.
    own = ("SQUEUE_", "SACCT_", "SCANCEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    try:
        return subprocess.run(
            command,
            env={**kept, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: no answer within {SECONDS} s; is SLURM up?") from None
    except OSError:
        return None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix("squeue: ") if lines else f"ended with {done.returncode}"


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
