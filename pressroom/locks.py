"""Locks of files: who works on a folder, seen by all who ask; the system frees a dead holder's.

Knows nothing of what is locked.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from pressroom.console import UserError, log

TRIES, PAUSE_SECONDS = 3, 0.05
JOIN_TRIES = 20
"""The children of a process that was killed end a moment after it."""


@contextlib.contextmanager
def lock(
    path: Path, what: str, *, shared: bool = False, waits: bool = False
) -> Iterator[Callable[[], None]]:
    """Hold a file's lock for as long as the block runs; the system frees it when a holder dies.

    Args:
        path: The file; its text says who holds it.
        what: What is locked, for the message.
        shared: Hold it beside others who hold it so.
        waits: Until others have ended, rather than refuse.

    Yields:
        Call it to let others hold it too who ask for a shared lock.

    Raises:
        UserError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:

        def take(kind: int, tries: int = TRIES) -> None:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if tries > 1:  # somebody may only look, as `is_locked` does
                    time.sleep(PAUSE_SECONDS)
                    take(kind, tries - 1)
                    return
                file.seek(0)
                holder = file.read().strip() or "one that does not say its name"
                if not waits:
                    raise UserError(f"{what}: another process is at it: {holder}") from None
                log.info("%s: waiting for %s", what, holder)
                fcntl.flock(file, kind)
            except OSError as error:
                log.warning("%s: no locks here (%s): see that nobody else is at it", path, error)

        take(fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if not shared:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield lambda: take(fcntl.LOCK_SH)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold a file's lock if nobody else does, for as long as the block runs.

    Yields:
        Whether it is held; where there are no locks, it is.
    """
    with path.open("a+") as file:
        yield _taken(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def joined(path: Path, what: str, group: str) -> Iterator[None]:
    """Hold a file's lock together with all who name the same group, and with nobody else.

    Raises:
        UserError: Another group holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        holder = ""
        for _ in range(JOIN_TRIES):
            if _taken(file, fcntl.LOCK_EX):
                file.truncate(0)
                file.write(group)
                file.flush()
            if _taken(file, fcntl.LOCK_SH):  # in between, another group may have come first
                file.seek(0)
                holder = file.read()
                if holder == group:
                    break
                fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(PAUSE_SECONDS)
        else:
            raise UserError(f"{what}: another process is at it: {holder or 'just begun'}")
        yield


def _taken(file: TextIO, kind: int) -> bool:
    """Whether a lock could be had; where there are none, it could."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: no locks here (%s): work may be done twice", file.name, error)
    return True


def is_locked(path: Path) -> bool:
    """Whether anybody holds a file's lock, alone or with others, as `lock` does.

    Where it cannot be known, for there is no file or there are no locks, nobody does.
    """
    mode = "r+" if os.access(path, os.W_OK) else "r"  # NFS locks alone what is open for writing
    try:
        with path.open(mode) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
