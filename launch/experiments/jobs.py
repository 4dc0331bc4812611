"""Missing points -> jobs of a SLURM cluster: an array of those that have the same shape.

Code, sbatch texts and submitit's pickles lie above the points, for they are submitted together;
each point's run says which task is its own, so that it is watched, cancelled and resumed as any
run. Datasets and 4-bit codes that are not there are made by jobs for which the arrays wait. Knows
nothing of what is asked.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from launch import chain, queue, slurm, snapshot
from launch.chain import Launch
from launch.command import Stage
from launch.experiments.define import Ready
from launch.experiments.place import Place
from launch.jobs import Job, now, record_job
from launch.keys import to_do
from launch.plan import Request, request
from launch.run_facts import all_jobs
from pressroom.base_model import geometry_of
from pressroom.cluster import Cluster
from pressroom.console import UserError, log, say
from pressroom.experiment import Experiment
from pressroom.files import home, publish_text
from pressroom.locks import is_locked
from pressroom.planner.choice import option
from pressroom.planner.here import gpus_of
from pressroom.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A point that is to be submitted."""

    ready: Ready
    run: RunDir
    cluster: Cluster


def submit(
    experiment: Experiment, missing: Sequence[Ready], place: Place, max_parallel: int | None
) -> None:
    """Submit the points that no job does already.

    Args:
        experiment: Its folder.
        missing: Points that have no result.
        place: The cluster.
        max_parallel: Jobs that run at a time; then shapes come one after the other.

    Raises:
        UserError: SLURM does not take a job; those of this call are cancelled.
    """
    unit = RunDir(experiment.path.absolute())
    tasks = [_task(unit, each, place) for each in missing]
    alive = _alive(tasks)
    for name, job in alive.items():
        say(f"{name:11}job {job}, queued already")
    tasks = [task for task in tasks if task.ready.point.name not in alive]
    if not tasks:
        return
    if not alive:
        snapshot.take(unit)
    for task in tasks:
        _begin(task)
    new: list[str] = []
    try:
        made = _inputs(unit, tasks, new)
        before: tuple[str, ...] = ()
        for group in _shapes(tasks):
            wanted = _request(unit, group, max_parallel)
            job = slurm.submit(_after(wanted, made, before), unit, [task.run for task in group])
            new.append(job)
            _record(group, job, made)
            before = (job,) if max_parallel else ()
    except UserError:
        if new:
            log.warning("cancelling %s, submitted just before", ", ".join(new))
            queue.cancel(new)
        raise


def _task(unit: RunDir, ready: Ready, place: Place) -> _Task:
    point = ready.point
    cluster = place.cluster_of(point.nodes, point.ranks_per_node)
    return _Task(ready=ready, run=RunDir(unit.path / point.name), cluster=cluster)


def _alive(tasks: Sequence[_Task]) -> dict[str, str]:
    """Point -> the job that does it already.

    Raises:
        UserError: Somebody trains one on this machine, or a job takes long to end.
    """
    jobs = {t.ready.point.name: all_jobs(t.run) for t in tasks if t.run.path.is_dir()}
    known = chain.at_rest([job.job for each in jobs.values() for job in each])
    found = {}
    for task in tasks:
        name = task.ready.point.name
        doing = [j.job for j in jobs.get(name, ()) if j.job in known and known[j.job].alive]
        if doing:
            found[name] = doing[-1]
        elif is_locked(task.run.lock):
            raise UserError(f"{task.run.path}: another process trains it here: let it end first")
    return found


def _begin(task: _Task) -> None:
    """Leave in a run what its job reads."""
    run, ready = task.run, task.ready
    if not run.path.is_dir():
        run.begin(ready.recipe)
        run.record_stage("train", ready.keys.train)
    run.submission.mkdir(mode=0o700, exist_ok=True)
    run.error.unlink(missing_ok=True)
    run.write_recipe(ready.recipe)
    plain = TypeAdapter(Cluster).dump_python(task.cluster, mode="json")
    publish_text(run.cluster, yaml.safe_dump(plain, sort_keys=False))
    ready.keys.write(run)


def _shapes(tasks: Sequence[_Task]) -> list[list[_Task]]:
    groups: dict[tuple[int, int], list[_Task]] = defaultdict(list)
    for task in tasks:
        groups[task.ready.point.nodes, task.ready.point.ranks_per_node].append(task)
    return list(groups.values())


def _request(unit: RunDir, group: Sequence[_Task], max_parallel: int | None) -> Request:
    """One array for points of one shape; the one that takes longest to save says how long."""
    wanted = request("train", unit, home().absolute(), group[0].cluster, max(map(_lead, group)))
    several = {"array_parallelism": min(max_parallel or len(group), len(group))}
    return replace(wanted, tasks=len(group), parameters=wanted.parameters | several)


def _lead(task: _Task) -> int:
    recipe, cluster = task.ready.recipe, task.cluster
    planned = option(recipe, geometry_of(recipe.model), gpus_of(cluster)).plan
    launch = Launch(
        run=task.run, recipe=recipe, cluster=cluster, keys=task.ready.keys, plan=planned
    )
    return chain.lead_seconds(launch)


def _after(wanted: Request, made: Sequence[str], before: Sequence[str]) -> Request:
    """To start when inputs have been made well, and when what goes before has ended anyhow."""
    kinds = {"afterok": made, "afterany": before}
    words = [":".join((kind, *jobs)) for kind, jobs in kinds.items() if jobs]
    if not words:
        return wanted
    return replace(wanted, parameters=wanted.parameters | {"dependency": ",".join(words)})


def _record(group: Sequence[_Task], job: str, made: Sequence[str]) -> None:
    several = len(group) > 1
    for number, task in enumerate(group):
        name = f"{job}_{number}" if several else job
        record_job(task.run, Job(job=name, stage="train", after=tuple(made), submitted=now()))
        say(f"{task.ready.point.name:24}job {name}")


def _inputs(unit: RunDir, tasks: Sequence[_Task], new: list[str]) -> list[str]:
    """Jobs that make what is not there yet, each once: datasets, then 4-bit codes."""
    found: list[str] = []
    stages: tuple[Stage, ...] = ("prep", "quantize")
    for stage in stages:
        outputs: dict[Path | None, _Task] = {}
        for task in tasks:
            keys = task.ready.keys
            if to_do(task.run, keys, stage):
                outputs.setdefault(keys.dataset if stage == "prep" else keys.codes, task)
        for task in outputs.values():
            lead = chain.LEAST_LEAD_SECONDS
            wanted = request(stage, unit, home().absolute(), task.cluster, lead)
            job = slurm.submit(wanted, unit, [task.run] * wanted.tasks)
            new.append(job)
            found.append(job)
            record_job(task.run, Job(job=job, stage=stage, submitted=now(), tasks=wanted.tasks))
            say(f"{stage:24}job {job}")
    return found
