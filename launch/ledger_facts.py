"""What files say of where a run's hours went. The only part of the ledger that reads any.

A file that cannot be read is a note. Knows nothing of how hours are divided.
"""

import math
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from launch.jobs import Job, Start, starts_of
from launch.run_facts import all_jobs
from pressroom.cluster import Cluster
from pressroom.locks import is_locked
from pressroom.run_dir import RunDir
from pressroom.standing import built, row
from pressroom.times import Times, read_times


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run's own files say of its hours."""

    run: str
    """NAME/STAMP, of an experiment's point NAME/STAMP/POINT."""
    begun: float = 0.0
    """When the run, or its experiment, was made, as the folder's name says."""
    jobs: Sequence[Job] = ()
    starts: Sequence[Start] = ()
    """Of its training jobs."""
    times: Times = field(default_factory=Times)
    finished: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Stage -> when it finished last, in seconds since 1970, and how many it took."""
    step_seconds: float | None = None
    """Of those steps in metrics.jsonl together that are older than times.jsonl: there none stands
    twice. None where there is no such file."""
    ranks: int | None = None
    """Of the newest start of training."""
    on_gpus: bool | None = None
    """Whether those ran on GPUs."""
    asked: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Stage -> GPUs and CPUs, as its cluster's file asks for them; CPUs 0 where it leaves them to
    SLURM."""
    trained_on: str | None = None
    """Who holds its lock now; empty: this machine."""
    notes: Sequence[str] = ()
    """What could not be read."""


def ledger_facts(run: RunDir) -> RunFacts:
    """What a run's files say."""
    notes: list[str] = []
    times = built(run.times, partial(read_times, run.times), notes) or Times()
    if times.damaged:
        notes.append(f"{run.times.name}: damaged lines, left out")
    facts = built(run.environment, lambda: run.facts, notes) or {}
    ranks, device = facts.get("world_size"), facts.get("device")
    return RunFacts(
        run=run.title,
        begun=_made(run),
        jobs=built(run.path, partial(all_jobs, run), notes) or [],
        starts=built(run.starts, partial(starts_of, run), notes) or [],
        times=times,
        finished=built(run.stages_file, partial(_finished, run), notes) or {},
        step_seconds=built(run.metrics, partial(_steps, run, times), notes),
        ranks=ranks if isinstance(ranks, int) else None,
        on_gpus=not device.startswith("CPU") if isinstance(device, str) else None,
        asked=built(run.cluster, partial(_asked, run), notes) or {},
        trained_on=_trained_on(run, times),
        notes=notes,
    )


def _made(run: RunDir) -> float:
    folder = run.path.parent if run.is_point else run.path
    with suppress(ValueError):
        return datetime.strptime(folder.name[:19], "%Y-%m-%dT%H-%M-%S").timestamp()
    return run.path.stat().st_mtime


def _finished(run: RunDir) -> dict[str, tuple[float, float]]:
    return {
        name: (seconds_of(stage["finished"]), float(stage["seconds"]))
        for name, stage in run.stages.items()
        if "finished" in stage
    }


def _steps(run: RunDir, times: Times) -> float:
    loads = [mark.step for start in times.starts for mark in start.marks if mark.what == "load"]
    last = loads[0] if loads else math.inf
    if not last:
        return 0.0
    with run.metrics.open(encoding="utf-8", errors="replace") as lines:
        rows = [found for found in map(row, lines) if found and found["step"] <= last]
    return math.fsum(found.get("step_seconds", 0.0) for found in rows)


def _asked(run: RunDir) -> dict[str, tuple[int, int]]:
    cluster = Cluster.load(run.cluster)
    per_node, cpus = cluster.gpus_per_node, cluster.cpus_per_node or 0
    one = (min(per_node, 1), max(cpus // max(per_node, 1), 1) if cpus else 0)
    none = (0, cluster.cpu_jobs.cpus)
    return {
        **dict.fromkeys(("prep", "merge"), none),
        **dict.fromkeys(("quantize", "evaluate", "generate"), one),
        "train": (cluster.nodes * per_node, cluster.nodes * cpus),
    }


def _trained_on(run: RunDir, times: Times) -> str | None:
    if not is_locked(run.lock):
        return None
    host = times.starts[-1].host if times.starts else ""
    return "" if host == socket.gethostname() else host or "another machine"


def seconds_of(when: str) -> float:
    """A time as records write it, in seconds since 1970."""
    return datetime.fromisoformat(when).timestamp()
