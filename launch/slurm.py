"""Requests -> jobs, through submitit. The only module that submits.

Knows nothing of what a job does, nor of what became of it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from launch.node import of_run
from launch.plan import Request
from pressroom.console import UserError
from pressroom.run_dir import RunDir


def submit(request: Request, unit: RunDir, runs: Sequence[RunDir] = ()) -> str:
    """Submit a stage's job; its id, of an array that of all its tasks.

    Its folder holds submitit's pickles, so it is its owner's alone.

    Args:
        request: What is asked for.
        unit: Whose submission it is.
        runs: The run of each task, where they are not all the unit's own.

    Raises:
        UserError: SLURM does not take it.
    """
    unit.submission.mkdir(mode=0o700, exist_ok=True)
    unit.submission.chmod(0o700)
    executor = SlurmExecutor(folder=unit.submission, python=request.python)
    executor.update_parameters(**request.parameters)
    with _outside_of_jobs():
        try:
            each = runs or [unit] * request.tasks
            what = [json.dumps([request.stage, str(run.path)]) for run in each]
            jobs = executor.map_array(of_run, what)  # of one it makes no array
        except (FailedJobError, FailedSubmissionError) as error:
            reason = str(error).strip() or "sbatch failed without a word"
            raise UserError(
                f"SLURM does not take the job of stage {request.stage}: {reason}"
            ) from None
    return str(jobs[0].job_id).partition("_")[0]


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the allocation in which this may run: its job's sizes are not the new job's."""
    if "SLURM_JOB_ID" not in os.environ:  # what is set elsewhere, its user has set
        yield
        return
    ours = ("SLURM_", "SBATCH_", "SRUN_")
    inside = {k: v for k, v in os.environ.items() if k.startswith(ours) and k != "SLURM_CONF"}
    for name in inside:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inside)
