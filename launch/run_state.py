"""How a run stands: what its own files say, and what SLURM says of its jobs, put together.

Pure functions: no file is read here and nobody is asked. Knows nothing of how a table looks.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from launch.jobs import Job
from launch.queue import JobState

LEAVE_NOTHING = ("prep", "quantize")
"""Stages whose output is not the run's own."""
_RECENT_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run's own files say."""

    standing: str
    """As `standing.standing` calls it."""
    error: str = ""
    """The first line of why it failed."""
    jobs: Sequence[Job] = ()
    """Every job of it, in the order of submission."""
    unfinished: Sequence[Job] = ()
    """Of those the newest of each stage, where the stage's output is not there."""
    last_stage: str = ""
    """The stage that finished last."""
    starts: Mapping[str, int] | None = None
    """Job -> how often it has started."""
    rows: Sequence[Mapping[str, float]] = ()
    """Of the last steps."""
    rows_at: float = 0.0
    """When the last row was written, in seconds since 1970."""
    num_steps: int | None = None
    """That it is to have, where that is known."""
    notes: Sequence[str] = ()
    """What could not be read."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run as its owner asks for it."""

    state: str
    """queued, requeued, running, done, failed, cancelled, preempted (ended when asked to, and not
    queued), given up (by its experiment), stopped (killed without a word), begun or unknown."""
    stage: str = ""
    job: str = ""
    note: str = ""
    """Where it runs, why it waits, what went wrong."""
    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    """Of all GPUs, while it trains."""
    seconds_left: float | None = None
    """Of training, by the median of the last steps."""


def run_state(facts: Facts, queue: Mapping[str, JobState] | None) -> RunState:
    """How a run stands.

    Args:
        facts: What its files say.
        queue: What SLURM says of its jobs: one that is absent is gone. None: it was not asked.
    """
    known = queue or {}
    alive = [job for job in facts.jobs if job.job in known and known[job.job].alive]
    never = [job for job in alive if known[job.job].never_starts]
    active = [job for job in alive if not known[job.job].waits]
    queued = [job for job in alive if known[job.job].waits and job not in never]
    if active:
        return _active(facts, active[0], known[active[0].job], never)
    if queued:
        return _queued(facts, queued[0], known[queued[0].job], never)
    if never:
        failed = next((j for j in facts.jobs if j.job in never[0].after), None)
        said = facts.error or (f"{failed.stage} failed (job {failed.job})" if failed else "")
        found = failed or never[0]
        return _state(facts, "failed", found, said, _never(never))
    return _over(facts, queue)


def _state(facts: Facts, state: str, job: Job | None, *notes: str, stage: str = "") -> RunState:
    """A state with the figures of the last step."""
    last = facts.rows[-1] if facts.rows else None
    return RunState(
        state=state,
        stage=job.stage if job else stage,
        job=job.job if job else "",
        note="; ".join(note for note in (*notes, *facts.notes) if note),
        step=int(last["step"]) if last else None,
        num_steps=facts.num_steps,
        loss=last["loss"] if last else None,
    )


def _active(facts: Facts, job: Job, now: JobState, never: Sequence[Job]) -> RunState:
    where = f"on {now.nodes}" if now.nodes else ""
    if now.tasks or now.state != "RUNNING":
        where = f"{now.tasks or now.state.lower()} {where}"
    if job.stage != "train":
        return _state(facts, "running", job, where, _never(never))
    if not facts.rows or facts.rows_at < (now.start or 0):
        return _state(facts, "running", job, f"loading {where}".strip(), _never(never))
    return _training(facts, _state(facts, "running", job, where, _never(never)))


def _training(facts: Facts, state: RunState) -> RunState:
    """A state with speed and time left, from the median of the last steps."""
    recent = facts.rows[-_RECENT_STEPS:]
    seconds, tokens = (
        statistics.median([row[name] for row in recent if name in row] or [0.0])
        for name in ("step_seconds", "tokens")
    )
    if not seconds or state.step is None:
        return state
    left = (facts.num_steps - state.step) * seconds if facts.num_steps else None
    return replace(state, tokens_per_second=tokens / seconds or None, seconds_left=left)


def _queued(facts: Facts, job: Job, now: JobState, never: Sequence[Job]) -> RunState:
    starts = max(now.restarts, (facts.starts or {}).get(job.job, 0))
    why = now.reason if now.state == "PENDING" else f"{now.state} {now.reason}".strip()
    if "held" in why.casefold() or "HOLD" in why:
        why += f": `scontrol release {job.job}` lets it start"
    if now.start:
        why += f", starts about {datetime.fromtimestamp(now.start):%m-%d %H:%M}"
    again = f"started {starts} times" if starts > 1 else "started once" if starts else ""
    state = "requeued" if starts else "queued"
    return _state(facts, state, job, why, now.tasks, again, _never(never))


def _never(never: Sequence[Job]) -> str:
    stages = " and ".join(dict.fromkeys(job.stage for job in never))
    return f"{stages} will never start: `pressroom cancel` it" if never else ""


def _over(facts: Facts, queue: Mapping[str, JobState] | None) -> RunState:
    """No job of the run is alive, as far as is known: which stage did not get through, and why."""
    if facts.standing == "running":  # here, without SLURM
        return _training(facts, _state(facts, "running", None, stage="train"))
    known = queue or {}
    job = next((j for j in facts.unfinished if not _may_be_well(j, known.get(j.job))), None)
    ended = known.get(job.job) if job else None
    if ended and ended.state == "CANCELLED":  # what died of it may have left an error
        return _state(facts, "cancelled", job)
    if facts.standing == "failed":
        return _state(facts, "failed", job, facts.error)
    if facts.standing == "given up":
        return _state(facts, "given up", job, "others of its experiment were better", stage="train")
    if job is None:
        if facts.standing == "finished":
            return _state(facts, "done", None, stage=facts.last_stage)
        return _state(
            facts, facts.standing, None, stage="" if facts.standing == "begun" else "train"
        )
    if queue is None:
        return _state(facts, "unknown", job, "SLURM could not be asked")
    asked_to = job.stage == "train" and facts.standing == "preempted"
    if asked_to or (ended and ended.state == "PREEMPTED"):
        return _state(facts, "preempted", job, "is not queued again")
    if ended and ended.state != "COMPLETED":
        says = f"SLURM says {ended.state} {ended.reason}".strip()
        return _state(facts, "failed", job, says, ended.tasks)
    return _state(facts, "stopped", job, "its job is over, without a word and without output")


def _may_be_well(job: Job, ended: JobState | None) -> bool:
    """Whether nothing speaks against a job whose output lies elsewhere."""
    return job.stage in LEAVE_NOTHING and (ended is None or ended.state == "COMPLETED")
