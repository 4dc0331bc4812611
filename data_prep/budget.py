"""How many requests were sent in a month: counted on disk before each is sent.

A request whose answer was lost, or whose sender was killed, is counted too: the feed has counted
it as well. Knows nothing of what is asked for.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from data_prep.feed import Stopped
from pressroom.files import publish_text


def _now() -> datetime:
    return datetime.now(UTC)


class Budget:
    """At most so many requests a calendar month (UTC).

    Args:
        folder: Has a file a month, with a line a request: when, and for which page.
        limit: Requests a month. One process at a time may spend.
        now: The clock.
    """

    def __init__(self, folder: Path, limit: int, now: Callable[[], datetime] = _now) -> None:
        self.folder, self.limit, self._now = folder, limit, now
        self._counts: dict[Path, int] = {}

    def _path(self) -> Path:
        return self.folder / f"{self._now():%Y-%m}.txt"

    @property
    def left(self) -> int:
        """Requests that may still be sent this month."""
        path = self._path()
        if path not in self._counts:
            lines = path.read_bytes() if path.is_file() else b""
            # What a kill cut short counts.
            self._counts[path] = lines.count(b"\n") + (lines[-1:] not in (b"", b"\n"))
        return max(self.limit - self._counts[path], 0)

    def spend(self, what: str) -> None:
        """Count one request, durably.

        Raises:
            Stopped: There is none left.
        """
        path, left = self._path(), self.left
        if not left:
            raise Stopped(f"the budget of {self.limit} requests a month (--budget) is spent")
        if not path.exists():
            publish_text(path, "")  # its name, too, survives a power cut
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(f"{self._now():%Y-%m-%dT%H:%M:%SZ} {what}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._counts[path] += 1
