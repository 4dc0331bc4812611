"""Units of work that any number of workers do together, on one machine or many.

    data/.NAME-KEY.prep/HASH/STEP/00007/       a unit that is done: its files, complete
    data/.NAME-KEY.prep/HASH/STEP/00007.lock   held by the worker that is at it

A worker takes any unit that is neither done nor held, and waits for those that others hold; when
its holder dies, a unit is free again at that moment. A unit's files follow from its inputs alone,
so it does not matter who does it, nor how often. Knows nothing of what a unit is.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pressroom.console import Progress, UserError
from pressroom.files import publish_folder
from pressroom.locks import claim

_WAIT_SECONDS = (0.05, 2.0)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AllDoneError(Exception):
    """Others have finished the whole work, and cleared it away."""


def unit_folder(step: Path, number: int) -> Path:
    """The folder of a unit; it is there when the unit is done."""
    return step / f"{number:05d}"


@dataclass(frozen=True)
class Step:
    """Units that need nothing of each other."""

    folder: Path
    count: int
    do: Callable[[int, Path], None]
    """Given a unit's number, fills its folder."""
    unit_name: str = "step"
    """What a unit is, for a person."""

    def unit(self, number: int) -> Path:
        """The folder of a unit."""
        return unit_folder(self.folder, number)


@dataclass(frozen=True)
class Worker:
    """One of those who do the units."""

    number: int
    count: int
    """Of all workers: each begins somewhere else."""
    is_over: Callable[[], bool]
    """Whether the whole work is finished."""
    shows: bool
    """Whether it tells how far all are."""

    def complete(self, step: Step) -> None:
        """See that all units of a step are done: here, or by others.

        Raises:
            AllDoneError: Nothing is left to do of any step.
            UserError: A unit cannot be done.
        """
        step.folder.mkdir(parents=True, exist_ok=True)
        wait, most = _WAIT_SECONDS
        missing = self._missing(step)
        done = step.count - len(missing)
        with self._progress(step, done) as progress:
            while missing:
                if self._did_one(step, missing):
                    wait, _ = _WAIT_SECONDS
                else:  # others are at all of them
                    time.sleep(wait)
                    wait = min(2 * wait, most)
                missing = self._missing(step)
                if progress and step.count > 1:
                    progress.advance(step.count - len(missing) - done)
                    done = step.count - len(missing)

    def _progress(self, step: Step, done: int) -> AbstractContextManager[Progress | None]:
        if not self.shows:
            return nullcontext()
        return Progress(step.folder.name, step.count, step.unit_name, done=done)

    def _missing(self, step: Step) -> list[int]:
        """The units that are not done, in the order in which this worker takes them."""
        done = set(step.folder.glob("[0-9]*")) if step.folder.is_dir() else set[Path]()
        if self.is_over():  # looked at last: what was done is there, or this is
            raise AllDoneError
        first = step.count * self.number // self.count
        order = ((first + number) % step.count for number in range(step.count))
        return [number for number in order if step.unit(number) not in done]

    def _did_one(self, step: Step, missing: Sequence[int]) -> bool:
        for number in missing:
            unit = step.unit(number)
            with claim(unit.with_suffix(".lock")) as is_ours:
                if not is_ours:
                    continue
                if not unit.is_dir() and not self.is_over():
                    _do(step, number)
                return True
        return False


def _do(step: Step, number: int) -> None:
    try:
        with publish_folder(step.unit(number)) as partial:
            step.do(number, partial)
    except OSError as error:
        if step.unit(number).is_dir():  # where a disk has no locks, another has done it meanwhile
            return
        if error.errno in _NO_SPACE:
            raise UserError(
                f"{step.unit(number)}: {os.strerror(error.errno)}; what is finished is kept: make "
                "room, and the same command goes on"
            ) from None
        raise
