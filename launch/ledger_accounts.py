"""What SLURM's accounts say that jobs were given: each start of each task, from sacct.

Knows nothing of runs.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from launch import queue
from launch.queue import JobState
from pressroom.console import UserError, log

_FIELDS = ("JobID", "JobIDRaw", "State", "Start", "End", "ElapsedRaw", "AllocTRES")
_ENERGY = "ConsumedEnergyRaw"
_GPUS = re.compile(r"gres/gpu(:[^=]*)?=(\d+)")


@dataclass(frozen=True, kw_only=True)
class Account:
    """One start of a job, or of one task of an array."""

    job: str
    """The id as it was submitted; of an array's task that of the array."""
    raw: str
    """The id that a process of it sees in SLURM_JOB_ID."""
    task: str = ""
    """Its number in the array."""
    restart: int = 0
    """Which start it is, from 0 on."""
    state: str
    """REQUEUED, RUNNING, COMPLETED and so on."""
    start: float
    """Seconds since 1970, by the controller's clock."""
    seconds: float
    """For which it had what it was given; until now, where it still has it."""
    gpus: int | None
    """None: GPUs are not among what the cluster accounts for."""
    cpus: int
    joules: float | None = None
    """None where no plugin measures."""

    def is_of(self, job: str) -> bool:
        """Whether it is of the job, or the one task, of an id."""
        return job in (self.job, self.raw, f"{self.job}_{self.task}")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """What SLURM says of all jobs."""

    accounts: Sequence[Account] = ()
    known: Collection[str] = ()
    """Jobs of which there are accounts, those that were never given anything included."""
    states: Mapping[str, JobState] | None = None
    """Of those jobs that squeue knows; None: it could not be asked."""
    silent: str = "SLURM's accounts do not know it"
    """Why there is no account of a job."""


def ask(ids: Collection[str]) -> Slurm:
    """What SLURM says of jobs: of each start what it was given, where it keeps accounts."""
    if not queue.is_here():
        return Slurm(silent="SLURM is not on this machine")
    text = _accounts(ids) if ids else ""
    found = parse(text or "")
    # What accounts call running, and squeue does not know, was lost with a controller.
    over = {each.job for each in found if each.state != "RUNNING"}
    alive = {each.job for each in found if each.state == "RUNNING"}
    states: Mapping[str, JobState] | None = None
    try:
        states = queue.states([job for job in ids if job not in over - alive])
    except UserError as error:
        log.warning("%s; what follows is what accounts and the runs' own files say", error)
    if text is None:
        return Slurm(states=states, silent="SLURM keeps no accounts")
    known = {re.split(r"[_|]", line)[0] for line in text.splitlines()}
    return Slurm(accounts=found, known=known, states=states)


def _accounts(ids: Collection[str]) -> str | None:
    """What sacct prints; None where SLURM keeps no accounts, or does not answer."""
    fields = ",".join((*_FIELDS, _ENERGY))
    only = ("--allocations", "--allusers", "--duplicates", "--noheader", "--parsable2")
    try:
        done = queue.ask("sacct", *only, f"--format={fields}", f"--jobs={','.join(sorted(ids))}")
    except UserError as error:
        log.warning("%s; what follows is what the runs' own files say", error)
        return None
    return done.stdout if done and not done.returncode else None


def parse(text: str) -> list[Account]:
    """The lines of sacct that were given something, in the order of their starts."""
    found: list[Account] = []
    lines = [line.split("|") for line in text.splitlines()]
    good = [cells for cells in lines if len(cells) == len(_FIELDS) + 1 and cells[3].isdigit()]
    for cells in sorted(good, key=lambda cells: int(cells[3])):
        plain = dict(zip((*_FIELDS, _ENERGY), cells, strict=True))
        given = dict(part.partition("=")[::2] for part in plain["AllocTRES"].split(","))
        if not given.get("cpu", "").isdigit() or not plain["ElapsedRaw"].lstrip("-").isdigit():
            continue  # cancelled in the queue, or a line that was cut
        job, _, task = plain["JobID"].partition("_")
        raw, energy = plain["JobIDRaw"], plain[_ENERGY]
        found.append(
            Account(
                job=job,
                raw=raw,
                task=task,
                restart=sum(each.raw == raw for each in found),
                state=plain["State"].split()[0] if plain["State"] else "",
                start=float(plain["Start"]),
                seconds=max(float(plain["ElapsedRaw"]), 0.0),  # of a clock that is behind
                gpus=_gpus(plain["AllocTRES"]),
                cpus=int(given["cpu"]),
                joules=float(energy) if energy.isdigit() and int(energy) else None,
            )
        )
    return found


def _gpus(tres: str) -> int | None:
    """Of `gres/gpu=8,gres/gpu:a100=8` the first, which is all; else the kinds together."""
    each = [(kind, int(count)) for kind, count in _GPUS.findall(tres)]
    if not each:
        return None
    return next((count for kind, count in each if not kind), sum(count for _, count in each))
