"""Stages as jobs: what of a run is missing, submitted with what it waits for.

What is done is skipped, what is queued or runs is left alone, and the rest waits for the stage
before it: SLURM cancels what waits for a stage that failed. Knows nothing of how a job is asked
for, nor of what it does.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import yaml
from pydantic import TypeAdapter

from launch import queue, slurm, snapshot
from launch.command import Stage
from launch.jobs import Job, now, record_job
from launch.keys import Keys, to_do
from launch.plan import Request, request
from launch.queue import JobState
from launch.run_facts import all_jobs
from pressroom.cluster import Cluster
from pressroom.console import UserError, log
from pressroom.files import home, lines_until, publish_text
from pressroom.locks import is_locked, lock
from pressroom.planner.plan import LEAD_MARGIN_SECONDS, Plan
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

ENDING_SECONDS = 60
"""For jobs that were cancelled to be gone."""
LAST_ROWS = 100
"""Of the metrics, which tell how long steps take."""
LEAST_LEAD_SECONDS = 120
"""A step of a small model takes no time; SLURM, the file system and other people's jobs do."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is to be submitted for a run."""

    run: RunDir
    """Absolute."""
    recipe: Recipe
    """Without `auto`."""
    cluster: Cluster
    keys: Keys
    plan: Plan


def requests(launch: Launch, stages: Sequence[Stage]) -> dict[Stage, Request | str]:
    """Of each stage its request; or the job that does it already; not of one that is done.

    Raises:
        UserError: Somebody trains the run on this machine.
    """
    run = launch.run
    jobs = all_jobs(run)
    known = at_rest([job.job for job in jobs])
    alive = {j.stage: j.job for j in jobs if j.job in known and known[j.job].alive}
    if not alive and is_locked(run.lock):
        raise UserError(f"{run.path}: another process trains it here: let it end first")
    found: dict[Stage, Request | str] = {}
    for stage in stages:
        if stage in alive:
            found[stage] = alive[stage]
        elif to_do(run, launch.keys, stage):
            lead = lead_seconds(launch)
            found[stage] = request(stage, run, home().absolute(), launch.cluster, lead)
    return found


def at_rest(ids: Sequence[str]) -> dict[str, JobState]:
    """What SLURM says of jobs when none of them is about to end, or to be queued again.

    Raises:
        UserError: One takes long to end.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        known = queue.states(ids)
        ending = [job for job, now in known.items() if now.state == "COMPLETING"]
        if not ending:
            return known
        if time.monotonic() > deadline:
            raise UserError(f"job {', '.join(ending)} is still ending: try again in a moment")
        time.sleep(1)


def lead_seconds(launch: Launch) -> int:
    """How long before its end a training is asked to save: as measured, else as predicted."""
    if launch.cluster.signal_seconds:
        return launch.cluster.signal_seconds
    rows = [json.loads(line) for line in lines_until(launch.run.metrics).splitlines()[-LAST_ROWS:]]
    steps = [row["step_seconds"] for row in rows if "step_seconds" in row]
    # A step in which something else happened takes half as long again.
    measured = 1.5 * max(steps, default=0.0) + launch.plan.save_seconds + LEAD_MARGIN_SECONDS
    lead = measured if steps else launch.plan.lead_seconds
    return math.ceil(max(lead, LEAST_LEAD_SECONDS))


def submit(
    launch: Launch, stages: Sequence[Stage], *, keep_code: bool, tell: Callable[[Stage, str], None]
) -> list[str]:
    """Submit what of a run is missing.

    Args:
        launch: The run, which is begun if it is new.
        stages: In order.
        keep_code: Run the code that the run has; else the code as it is now.
        tell: Called for each stage with its job, in words.

    Returns:
        The jobs of this call.

    Raises:
        UserError: SLURM does not take a job; those of this call are cancelled.
    """
    run = launch.run
    if not run.path.is_dir():
        run.begin(launch.recipe)
        run.record_stage("train", launch.keys.train)
    run.submission.mkdir(mode=0o700, exist_ok=True)
    with lock(run.submission / ".lock", f"{run.path}: submitting"):
        found = requests(launch, stages)
        alive = [each for each in found.values() if isinstance(each, str)]
        if alive and run.load_recipe() != launch.recipe:
            raise UserError(
                f"{run.path}: job {', '.join(alive)} does the stages of another recipe there: "
                "`pressroom cancel` them, or wait for their end"
            )
        if not alive:
            run.error.unlink(missing_ok=True)  # a task of an array leaves others' words
        if not (alive and run.keys.is_file()):  # what sbatch has started left none
            if not keep_code:
                snapshot.take(run)
            run.write_recipe(launch.recipe)
            plain = TypeAdapter(Cluster).dump_python(launch.cluster, mode="json")
            publish_text(run.cluster, yaml.safe_dump(plain, sort_keys=False))
            launch.keys.write(run)
        return _submit(run, found, tell)


def _submit(
    run: RunDir, found: dict[Stage, Request | str], tell: Callable[[Stage, str], None]
) -> list[str]:
    new: list[str] = []
    after: tuple[str, ...] = ()
    for stage, each in found.items():
        if isinstance(each, str):
            job = each
        else:
            try:
                job = slurm.submit(each.after(after), run)
            except UserError:
                if new:
                    log.warning("cancelling %s, which were to go before it", ", ".join(new))
                    queue.cancel(new)
                raise
            new_job = Job(job=job, stage=stage, after=after, submitted=now(), tasks=each.tasks)
            record_job(run, new_job)
            new.append(job)
        tell(stage, f"job {job}{_more(each)}")
        after = (job,)
    return new


def _more(each: Request | str) -> str:
    if isinstance(each, str):
        return ", queued already"
    return f", an array of {each.tasks} tasks" if each.tasks > 1 else ""
