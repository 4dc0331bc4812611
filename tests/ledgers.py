"""Run folders as trainings leave them, for tests of the ledger: times, starts, jobs, stages."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from conftest import recipe_text

from launch.jobs import Job, Start, record_job, record_start
from pressroom.files import publish_text
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

DAY = 1_795_000_000
"""When all of it happens, in seconds since 1970: 2026-11-18, in the morning."""
CLUSTER = {
    "partition": "gpu",
    "nodes": 2,
    "gpus_per_node": 4,
    "gpu": "h100",
    "time_limit": "12:00:00",
}


def iso(seconds: float) -> str:
    """A time as records write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def a_run(home: Path, name: str = "tiny", stamp: float = DAY) -> RunDir:
    """A run that has a recipe, and nothing else yet."""
    run = RunDir(home / "runs" / name / time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(stamp)))
    (home / "my.yaml").write_text(recipe_text(home / "base", name=name))
    run.begin(Recipe.load(str(home / "my.yaml")))
    return run


def write(run: RunDir, *lines: object) -> None:
    """Append lines to times.jsonl; text as it stands, with no line's end."""
    with run.times.open("a") as file:
        for line in lines:
            file.write(line if isinstance(line, str) else json.dumps(line) + "\n")


def start(at: float, *, gpus: int = 8, cpus: int = 8, **more: object) -> dict[str, object]:
    """The line of ranks that begin."""
    plain = {"what": "start", "at": at, "gpus": gpus, "cpus": cpus, "host": "n1"}
    return {**plain, "job": "", "restart": 0, **more}


def stage(name: str, at: float, seconds: float, **more: object) -> dict[str, object]:
    """The line of a stage that is over."""
    plain = {"what": "stage", "stage": name, "at": at, "seconds": seconds, "gpus": None, "cpus": 16}
    return {**plain, "job": "", "restart": 0, **more}


def marks(text: str) -> list[dict[str, object]]:
    """`load 0 60, step 1 10`: marks, their steps and seconds."""
    each = [mark.split() for mark in text.split(",")]
    return [{"what": w, "step": int(step), "seconds": float(s)} for w, step, s in each]


def submitted(run: RunDir, job: str, stage: str = "train", *, tasks: int = 1) -> None:
    """Record a job, as at submission, to a cluster of 2 nodes of 4 GPUs."""
    record_job(run, Job(job=job, stage=stage, submitted=iso(DAY), tasks=tasks))
    publish_text(run.cluster, json.dumps(CLUSTER))


def started(run: RunDir, job: str, at: float, *, restart: int = 0, step: int = 0) -> None:
    """Record a start of a job on its nodes."""
    nodes = ("n1", "n2")
    times = {"started": iso(at), "restart": restart, "step": step}
    record_start(run, Start(job=job, stage="train", nodes=nodes, **times))


def accounts(*lines: Sequence[object]) -> str:
    """What sacct prints: id, state, start, seconds, GPUs, and joules where there are."""
    return "".join(_account(*line) for line in lines)


def _account(
    job: object, state: str, at: float, seconds: float, gpus: int | None, joules: object = ""
) -> str:
    shown, _, raw = str(job).partition("=")
    tres = "billing=8,cpu=64" + ("" if gpus is None else f",gres/gpu={gpus}") * (gpus != 0)
    cells = (shown, raw or shown, state, int(at), int(at + seconds), int(seconds), tres, joules)
    return "|".join(map(str, cells)) + "\n"
