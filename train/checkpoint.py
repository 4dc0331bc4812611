"""Checkpoints: complete or invisible, the last few kept, the newest found at start.

A checkpoint holds the adapters and the state of optimizer, scheduler, random numbers and data
position, never the base. Knows nothing of when to save.
"""

import re
import shutil
from pathlib import Path

from pressroom.files import replace_folder
from pressroom.run_dir import RunDir

_STEP = re.compile(r"step-(\d{6,})")


def newest(run: RunDir) -> Path | None:
    """The newest complete checkpoint of a run, if there is one."""
    return max(_complete(run), key=_step, default=None)


def world_size(checkpoint: Path) -> int:
    """How many ranks wrote a checkpoint: each leaves the state of its random numbers."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def scratch(run: RunDir) -> Path:
    """Where the trainer writes before it is complete.

    torch keeps optimizer and random numbers as pickles: nobody else may write here.
    """
    run.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
    return run.checkpoints / ".partial"


def publish(run: RunDir, step: int, keep_last: int) -> None:
    """Give the checkpoint that the trainer has written its name; drop those that are too old.

    Called by one rank, when all have written.
    """
    replace_folder(scratch(run) / f"checkpoint-{step}", run.checkpoint(step))
    for old in sorted(_complete(run), key=_step)[:-keep_last]:
        shutil.rmtree(old)


def _complete(run: RunDir) -> list[Path]:
    return [p for p in run.checkpoints.glob("step-*") if _STEP.fullmatch(p.name)]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
