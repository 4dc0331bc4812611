"""Who held what for how long, by a run's own files, where SLURM has no account of it.

Pure functions. All times are by the clock of the node that wrote them: no two clocks are ever
subtracted from each other. Knows nothing of what was done meanwhile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from launch.jobs import Job
from launch.jobs import Start as JobStart
from launch.ledger_accounts import Slurm
from launch.ledger_facts import RunFacts, seconds_of
from launch.queue import JobState
from pressroom.times import Stage, Start

_SLACK = 1.0
"""Seconds by which two lines of one clock may differ."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One start of one stage, on what it held."""

    stage: str
    begun: float
    """Seconds since 1970, for its date."""
    seconds: float | None = None
    """For which it held it; None: nobody knows."""
    gpus: int | None = None
    """None: nobody knows."""
    cpus: int = 0
    """0: nobody knows."""
    joules: float | None = None
    start: Start | None = None
    """What its ranks say, of a training."""
    head: float = 0.0
    """Seconds from its launch to the making of rank 0's process."""
    at_least: bool = False
    """Whether it has held it for longer, and nobody knows how long."""
    notes: tuple[str, ...] = ()


def ranks_of(facts: RunFacts, job: str, restart: int) -> Start | None:
    """What the ranks of a job's start have written."""
    same = [s for s in facts.times.starts if (s.job, s.restart) == (job, restart)]
    return same[-1] if same else None


def launched(facts: RunFacts, job: str, restart: int) -> float | None:
    """When a job's first node has begun a start, in seconds since 1970, by its clock."""
    same = [s for s in facts.starts if (s.job, s.restart) == (job, restart)]
    return seconds_of(same[-1].started) if same else None


def head(launched: float | None, ranks: Start | None) -> float:
    """Seconds from a launch to the making of rank 0's process: both are of the first node."""
    return max(ranks.at - launched, 0.0) if ranks and launched else 0.0


def of_job(facts: RunFacts, job: Job, slurm: Slurm, now: float) -> Iterator[Claim]:
    """What the run's own files say of a job, and squeue where it still knows it."""
    state = (slurm.states or {}).get(job.job)
    starts: list[JobStart | None] = [s for s in facts.starts if s.job == job.job]
    if job.stage != "train" or not starts:
        if state and (state.waits or not state.nodes):
            return  # it has never had anything
        starts = [None]
    for start in starts:
        is_last = start is starts[-1]
        claim = _recorded(facts, job, start)
        by_slurm = _by_state(state, now) if is_last and state and not state.tasks else None
        if by_slurm is not None and state and state.start:
            yield replace(claim, seconds=by_slurm, begun=state.start)
            continue
        said = f"{slurm.silent}: counted from the first line that it wrote to the last"
        if claim.seconds is None:
            said = f"{slurm.silent}, and {job.stage} (job {job.job}) has left no times"
        yield replace(claim, at_least=True, notes=(*claim.notes, said))


def _by_state(state: JobState, now: float) -> float | None:
    """For how long a job has run, by squeue; None where it waits, or does not say."""
    if state.start is None or state.waits:
        return None
    end = now if state.alive else state.end
    return None if end is None else max(end - state.start, 0.0)


def _recorded(facts: RunFacts, job: Job, start: JobStart | None) -> Claim:
    """What a start of a job has written itself."""
    gpus, cpus = facts.asked.get(job.stage, (None, 0))
    begun = seconds_of(start.started if start else job.submitted)
    claim = Claim(stage=job.stage, begun=begun, gpus=gpus, cpus=cpus)
    restart = start.restart if start else None
    over = [
        s
        for s in facts.times.stages
        if s.job == job.job and s.stage == job.stage and restart in (None, s.restart)
    ]
    if start is None:
        return _stage(facts, claim, over)
    ranks = ranks_of(facts, start.job, start.restart)
    if over:
        end = over[-1].at + over[-1].seconds
        seconds: float | None = max(end - begun, over[-1].seconds)
    else:
        seconds = ranks.end - min(begun, ranks.at) if ranks else None
    return replace(claim, start=ranks, head=head(begun, ranks), seconds=seconds)


def _stage(facts: RunFacts, claim: Claim, over: Sequence[Stage]) -> Claim:
    """A stage of one process, by its own times, all starts of its job together."""
    if over:
        return replace(
            claim,
            begun=over[0].at,
            seconds=sum(each.seconds for each in over),
            gpus=over[-1].gpus if claim.gpus is None else claim.gpus,
            cpus=claim.cpus or over[-1].cpus,
        )
    finished, seconds = facts.finished.get(claim.stage, (0.0, 0.0))
    if claim.stage != "train" and finished >= claim.begun:
        return replace(claim, begun=finished - seconds, seconds=seconds)
    return claim


def of_machine(facts: RunFacts, now: float) -> Iterator[Claim]:
    """What was started on a machine by hand, inside a job or not."""
    ours = {job.job for job in facts.jobs}
    ranks = [start for start in facts.times.starts if start.job not in ours]
    newest = facts.times.starts[-1] if facts.times.starts else None
    for over in (stage for stage in facts.times.stages if stage.job not in ours):
        mine = [s for s in ranks if over.stage == "train" and _is_within(s, over)]
        ranks = [start for start in ranks if start not in mine]
        start = mine[-1] if mine else None
        yield Claim(
            stage=over.stage,
            begun=over.at,
            seconds=over.seconds,
            gpus=over.gpus,
            cpus=over.cpus,
            start=start,
            head=head(over.at, start),
        )
    for start in ranks:
        lives = start is newest and facts.trained_on is not None
        yield _without_launcher(start, facts.trained_on if lives else None, now)
    yield from _before_times(facts)


def _is_within(start: Start, over: Stage) -> bool:
    return over.at - _SLACK <= start.at <= over.at + over.seconds + _SLACK


def _without_launcher(start: Start, lives_on: str | None, now: float) -> Claim:
    """Ranks whose launcher has not said that they are over."""
    seconds, said = start.end - start.at, ""
    if lives_on == "":
        seconds = max(now - start.at, seconds)
    elif lives_on:
        said = f"it runs on {lives_on}, by another clock: counted until it wrote last"
    elif not start.marks or start.marks[-1].what != "end":
        said = "a start was killed: counted until it wrote last"
    return Claim(
        stage="train",
        begun=start.at,
        seconds=seconds,
        start=start,
        at_least=bool(said),
        notes=(said,) if said else (),
    )


def _before_times(facts: RunFacts) -> Iterator[Claim]:
    """Stages of runs that are older than times.jsonl."""
    known = {job.stage for job in facts.jobs} | {stage.stage for stage in facts.times.stages}
    for stage, (finished, seconds) in facts.finished.items():
        if stage not in known | {"train"}:
            yield Claim(stage=stage, begun=finished - seconds, seconds=seconds)
    if facts.step_seconds and "train" not in known and not facts.times.starts:
        yield Claim(stage="train", begun=facts.begun)
