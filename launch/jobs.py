"""A run's jobs: what was submitted to SLURM for it, and each time that one of them started.

Written where it happens, read by whoever watches. Knows nothing of what SLURM says of them now.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pressroom.files import publish_json, read_json
from pressroom.run_dir import RunDir


def now() -> str:
    """The time, as records write it."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job that was submitted for a run."""

    job: str
    """SLURM's id; of a task that is a run's own in an array of several runs, `12_3`."""
    stage: str
    after: tuple[str, ...] = ()
    """Jobs that must end well before it starts."""
    submitted: str
    """When, ISO 8601."""
    tasks: int = 1
    """That share its work, as an array; 1: it is none."""

    @property
    def names(self) -> list[str]:
        """What SLURM calls its tasks, the job itself where there is one alone."""
        many = range(self.tasks) if self.tasks > 1 else ()
        return [f"{self.job}_{task}" for task in many] or [self.job]


def record_job(run: RunDir, job: Job) -> None:
    """Remember a job, as soon as SLURM has it."""
    publish_json(run.jobs / f"{job.job}.json", asdict(job))


def jobs_of(run: RunDir) -> list[Job]:
    """The jobs that were submitted for a run, in that order."""
    files = [p for p in run.jobs.glob("*.json") if p.stem.replace("_", "").isdigit()]
    found = [read_json(path, "delete it: the job is then forgotten") for path in files]
    jobs = [Job(**{**plain, "after": tuple(plain["after"])}) for plain in found]
    return sorted(jobs, key=lambda job: (job.submitted, number_of(job.job)))


def number_of(job: str) -> tuple[int, ...]:
    """What sorts ids as SLURM gives them: `9`, `10`, `10_2`.

    Raises:
        ValueError: It is none.
    """
    return tuple(map(int, job.split("_")))


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a job on its nodes; under plain sbatch all that is known of it."""

    job: str
    restart: int
    """0, then how often SLURM has queued it again."""
    stage: str
    nodes: tuple[str, ...]
    step: int
    """Of the newest checkpoint then."""
    started: str
    """When, ISO 8601."""


def record_start(run: RunDir, start: Start) -> None:
    """Remember a start; only a job's first node calls it."""
    with run.starts.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(start)) + "\n")


def starts_of(run: RunDir) -> list[Start]:
    """The starts of a run's jobs, in order; a line that was cut short is none."""
    return list(_starts(run.starts.read_text(encoding="utf-8"))) if run.starts.is_file() else []


def _starts(text: str) -> Iterator[Start]:
    for line in text.splitlines():
        try:
            plain: dict[str, Any] = json.loads(line)
            yield Start(**{**plain, "nodes": tuple(plain["nodes"])})
        except (ValueError, TypeError, KeyError):
            continue


def fruitless(starts: list[Start], job: str, step: int) -> int:
    """How often a job has started at a step in a row, up to its last start."""
    count = 0
    for start in reversed([start for start in starts if start.job == job]):
        if start.step != step:
            break
        count += 1
    return count
