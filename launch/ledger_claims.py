"""Who held what for how long: each start of each stage of a run, from SLURM or from its own files.

Pure functions: no file is read here and nobody is asked. Two clocks are never subtracted from each
other: how long a job held its nodes is SLURM's to say, by the controller's clock; without SLURM it
is the run's own, by the clock of the node that wrote it. Knows nothing of what was done meanwhile.
"""

from dataclasses import replace

from launch.jobs import Job
from launch.ledger_accounts import Account, Slurm
from launch.ledger_facts import RunFacts
from launch.ledger_own import Claim, head, launched, of_job, of_machine, ranks_of

DAY = 86_400.0
"""Seconds by which the controller's clock may be off for a job to be known as another one."""


def claims(facts: RunFacts, slurm: Slurm, now: float) -> list[Claim]:
    """Every start of every stage, in the order of time.

    Args:
        facts: What the run's files say.
        slurm: What SLURM says.
        now: Seconds since 1970, by this machine's clock.
    """
    found = list(of_machine(facts, now))
    counted: list[Account] = []
    for job in facts.jobs:
        mine = [account for account in slurm.accounts if _is_its(account, job, facts)]
        if not mine and job.job not in slurm.known:
            found += of_job(facts, job, slurm, now)
        # A task of an array is in the run's files by the array's id and by its own.
        new = [account for account in mine if account not in counted]
        found += [_accounted(facts, job, account, slurm) for account in new]
        counted += new
    return sorted((_sized(facts, claim) for claim in found), key=lambda claim: claim.begun)


def _is_its(account: Account, job: Job, facts: RunFacts) -> bool:
    """Whether what SLURM accounts for is a run's job.

    A job that had the id long ago is none: SLURM begins anew some day. A training is one task: of
    an array the others train other runs.
    """
    if not account.is_of(job.job) or account.start + account.seconds < facts.begun - DAY:
        return False
    is_shared = job.stage == "train" and account.task and job.job == account.job != account.raw
    return not is_shared or account.raw in {start.job for start in facts.starts}


def _sized(facts: RunFacts, claim: Claim) -> Claim:
    """A claim whose GPUs and CPUs are filled in from what other files say."""
    gpus, cpus = claim.gpus, claim.cpus
    if gpus is None and claim.start:
        gpus, cpus = claim.start.gpus, cpus or claim.start.cpus
    if gpus is None and claim.stage == "train":
        others = facts.times.starts[-1:]
        if others:
            gpus, cpus = others[0].gpus, cpus or others[0].cpus
        elif facts.on_gpus is not None and facts.ranks:
            gpus = facts.ranks if facts.on_gpus else 0
    return replace(claim, gpus=gpus, cpus=cpus)


def _accounted(facts: RunFacts, job: Job, account: Account, slurm: Slurm) -> Claim:
    gpus = account.gpus
    ranks = ranks_of(facts, account.raw, account.restart) if job.stage == "train" else None
    asked = facts.asked.get(job.stage, (0, 0))[0] or (ranks.gpus if ranks else 0)
    notes = []
    if gpus is None and asked:
        notes.append("SLURM's accounts do not count GPUs: they are those that were asked for")
    is_lost = account.state == "RUNNING" and slurm.states is not None
    is_lost = is_lost and not {job.job, account.job} & set(slurm.states or ())
    if is_lost:
        notes.append("SLURM's accounts have no end of it: counted until it wrote last")
    return Claim(
        stage=job.stage,
        begun=account.start,
        seconds=None if is_lost else account.seconds,
        gpus=asked if gpus is None else gpus,
        cpus=account.cpus,
        joules=account.joules,
        start=ranks,
        head=head(launched(facts, account.raw, account.restart), ranks),
        at_least=is_lost,
        notes=tuple(notes),
    )
