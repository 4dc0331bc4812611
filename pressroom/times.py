"""times.jsonl: where a run's seconds went, a line for each thing that was done, when it was done.

Appended, never written anew: of steps that a restart did again both times stay. Seconds are of the
writer's own clock that never jumps; only where something begins stands a time of day. Written by
rank 0 of a training and by what starts stages. Knows nothing of GPU-hours.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """Something that a training has done, from the mark before it on."""

    what: str
    """load, step, evaluate, save; end: nothing, and no more is done."""
    step: int
    """Of load: the one from which it goes on."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Start:
    """The ranks of a training, from the making of rank 0's process on."""

    at: float
    """Seconds since 1970, by the clock of rank 0's node."""
    gpus: int
    """Of all ranks; 0: they run on CPUs."""
    cpus: int
    """Of all ranks, that they use where they run on CPUs."""
    host: str = ""
    job: str = ""
    """SLURM's id, of an array's task its own; empty without SLURM."""
    restart: int = 0
    marks: list[Mark] = field(default_factory=list)

    @property
    def end(self) -> float:
        """When it was last heard of."""
        return self.at + sum(mark.seconds for mark in self.marks)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage that was begun on this machine, or in a job, and is over: well or not."""

    stage: str
    at: float
    """When it was begun, in seconds since 1970."""
    seconds: float
    gpus: int | None
    """None: those of its ranks."""
    cpus: int
    """That it could use."""
    job: str = ""
    restart: int = 0


@dataclass(kw_only=True)
class Times:
    """What a times.jsonl says."""

    starts: list[Start] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    damaged: int = 0
    """Lines that cannot be read: a kill can cut one."""


class Marks:
    """Writes what a training does; no mark is worth ending a training.

    Args:
        path: The file; None: nothing is written, as by all ranks but the first.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._last = path, time.monotonic()

    def start(self, born: float, gpus: int, cpus: int) -> None:
        """The process that was made at that time, in seconds since 1970, trains here."""
        self._last = time.monotonic() - max(time.time() - born, 0.0)
        begun = Start(at=born, gpus=gpus, cpus=cpus, host=socket.gethostname(), **_job())
        self._write({"what": "start", **{k: v for k, v in asdict(begun).items() if k != "marks"}})

    def mark(self, what: str, step: int) -> None:
        """This was done since the last mark."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._write(Mark(what, step, round(seconds, 4))._asdict())

    def _write(self, plain: dict[str, Any]) -> None:
        if self._path:
            _append(self._path, plain)


def timed_stage(stage: str, gpus: int | None, cpus: int) -> Callable[[Path], None]:
    """Time a stage from here on, with what it can use.

    Returns:
        To be called with the file when the stage is over.
    """
    at, start = time.time(), time.monotonic()

    def write(path: Path) -> None:
        seconds = round(time.monotonic() - start, 3)
        over = Stage(stage=stage, at=at, seconds=seconds, gpus=gpus, cpus=cpus, **_job())
        _append(path, {"what": "stage", **asdict(over)})

    return write


def _job() -> dict[str, Any]:
    restart = os.environ.get("SLURM_RESTART_COUNT", "")
    job = os.environ.get("SLURM_JOB_ID", "")
    return {"job": job, "restart": int(restart) if restart.isdigit() else 0}


def _append(path: Path, plain: dict[str, Any]) -> None:
    with suppress(OSError), path.open("ab+") as file:
        is_cut = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write(b"\n" * bool(is_cut) + json.dumps(plain).encode() + b"\n")


def read_times(path: Path) -> Times:
    """What a file says; nothing where it is not there."""
    found = Times()
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in filter(str.strip, text.splitlines()):
        try:
            _take(json.loads(line), found)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            found.damaged += 1
    return found


def _take(plain: dict[str, Any], found: Times) -> None:
    """Add a line to what was read before it; a mark is of the last start."""
    what = plain.pop("what")
    if what == "start":
        found.starts.append(Start(**_checked(plain)))
    elif what == "stage":
        found.stages.append(Stage(**_checked(plain)))
    else:
        found.starts[-1].marks.append(Mark(what=str(what), **_checked(plain)))


_NUMBERS = ("at", "seconds", "step", "gpus", "cpus", "restart")
_LARGEST = 1e11


def _checked(plain: dict[str, Any]) -> dict[str, Any]:
    """The same.

    Raises:
        ValueError: What should be a number is none, is negative or endless; or text is no text.
    """
    for name, value in plain.items():
        if name == "gpus" and value is None:
            continue
        good = type(value) in (int, float) and 0 <= value < _LARGEST
        if not (good if name in _NUMBERS else isinstance(value, str)):
            raise ValueError(name)
    return plain
