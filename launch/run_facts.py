"""What a run's own files say of it, for whoever watches: the ends of files, and small ones.

A file that cannot be read is a note. Knows nothing of what SLURM says.
"""

from collections import Counter
from datetime import datetime
from functools import partial

from launch.jobs import Job, jobs_of, number_of, starts_of
from launch.run_state import LEAVE_NOTHING, Facts
from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.run_dir import RunDir
from pressroom.standing import built, last_rows, num_steps, standing


def facts_of(run: RunDir) -> Facts:
    """What a run's files say."""
    notes: list[str] = []
    stands = standing(run)
    finished = built(run.stages_file, partial(_finished, run), notes) or {}
    jobs = built(run.path, partial(all_jobs, run), notes) or []
    unfinished = built(run.path, partial(_unfinished, run, jobs, finished), notes) or []
    rows = built(run.metrics, partial(last_rows, run.metrics), notes) or []
    error = built(run.error, partial(_first_line, run), notes) or ""
    starts = built(run.starts, partial(starts_of, run), notes) or []
    steps = None
    if rows and stands not in ("finished", "failed"):
        steps = built(run.recipe, partial(_num_steps, run), notes)
    return Facts(
        standing=stands,
        error=error,
        jobs=jobs,
        unfinished=unfinished,
        last_stage=max(reversed(finished), key=lambda stage: finished[stage], default=""),
        starts=Counter(start.job for start in starts),
        rows=rows,
        rows_at=run.metrics.stat().st_mtime if rows else 0.0,
        num_steps=steps,
        notes=notes,
    )


def all_jobs(run: RunDir) -> list[Job]:
    """The jobs of a run: those submitted for it, and those that plain sbatch has started.

    Raises:
        UserError: The record of one is damaged.
    """
    try:
        submitted = jobs_of(run)
        known = {job.job for job in submitted}
        started = {
            start.job: Job(job=start.job, stage=start.stage, submitted=start.started)
            for start in reversed(starts_of(run))
            if start.job not in known
        }
        every = [*submitted, *started.values()]
        return sorted(every, key=lambda job: (_seconds(job), number_of(job.job)))
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{run.jobs}: the record of a job is damaged ({error})") from None


def _seconds(job: Job) -> float:
    return datetime.fromisoformat(job.submitted).timestamp()


def _finished(run: RunDir) -> dict[str, float]:
    """Stage -> when it finished, in seconds since 1970."""
    recorded = {name: stage.get("finished") for name, stage in run.stages.items()}
    return {n: datetime.fromisoformat(when).timestamp() for n, when in recorded.items() if when}


def _unfinished(run: RunDir, jobs: list[Job], finished: dict[str, float]) -> list[Job]:
    """The newest job of each stage whose output is not there."""
    newest = {job.stage: job for job in jobs}

    def is_done(job: Job) -> bool:
        if job.stage in LEAVE_NOTHING:  # what trains has found it
            return run.metrics.is_file() or run.adapter.is_dir()
        if job.stage == "train":
            return run.adapter.is_dir()
        return finished.get(job.stage, 0.0) >= _seconds(job)

    return [job for job in newest.values() if not is_done(job)]


def _first_line(run: RunDir) -> str:
    text = run.error.read_text(encoding="utf-8", errors="replace").strip()
    first, _, rest = text.partition("\n")
    return f"{first} {rest.strip().partition(chr(10))[0]}" if first.endswith(":") else first


def _num_steps(run: RunDir) -> int | None:
    recipe = run.load_recipe()
    rows_known = recipe.optimizer.num_steps is not None
    return num_steps(recipe, None if rows_known else Manifest.read(run.dataset))
