"""How a stage is remembered: its key and time where it ended well, its error where it did not.

The same for a stage on this machine and for a job on a cluster. Knows nothing of what a stage does.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from launch.keys import Keys
from launch.local import Failure, count_cpus
from pressroom.console import UserError, human_seconds, log, redact
from pressroom.files import publish_text
from pressroom.gpus import count_gpus
from pressroom.locks import is_locked
from pressroom.run_dir import RunDir
from pressroom.times import timed_stage


@contextmanager
def recorded(run: RunDir, keys: Keys, stage: str, task: int | None = None) -> Iterator[None]:
    """Remember how the block, which does a stage, ends; and make the run's page.

    Of an error the stage's own words are better. A run that somebody else trains is theirs: being
    refused is no failure of it.

    Args:
        run: The run.
        keys: What its stages are made from.
        stage: Which of them.
        task: Of several that share the stage's work: what another has said stays.
    """
    what = stage if task is None else f"{stage}, task {task}"
    if not is_locked(run.lock) and (task is None or _said(run).startswith(f"{what}: ")):
        run.error.unlink(missing_ok=True)
    start = time.monotonic()
    write_times = timed_stage(stage, _gpus(stage), count_cpus())
    try:
        yield
        seconds = time.monotonic() - start
        if stage not in ("prep", "quantize"):  # what they make belongs to no run
            run.record_stage(stage, getattr(keys, stage), seconds)
        log.info("%s: %s", stage, human_seconds(seconds))
    except UserError as error:
        if not is_locked(run.lock):
            keep_error(run, what, error)
        raise
    finally:
        if task is None and not is_locked(run.lock):  # tasks would write at the same time
            write_times(run.times)
        # It draws pictures, whose libraries nobody else here needs.
        from pressroom.report.page import try_publish

        try_publish(run)


def _gpus(stage: str) -> int | None:
    """Of a stage but training, whose ranks say it themselves: one, where it uses any."""
    if stage == "train":
        return None
    return 0 if stage in ("prep", "merge") else min(count_gpus(), 1)


def keep_error(run: RunDir, what: str, error: UserError) -> None:
    """Write down why a run failed, unless somebody has said it better already."""
    if not run.error.is_file():
        said = error.said if isinstance(error, Failure) else str(error)
        publish_text(run.error, redact(f"{what}: {said}") + "\n")


def _said(run: RunDir) -> str:
    return run.error.read_text(encoding="utf-8") if run.error.is_file() else ""
