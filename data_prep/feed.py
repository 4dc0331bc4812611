"""What a feed is: a class that says what to ask for and how to read the answer.

`data_prep/mediastack.py` is one. Another is a class with the members of `Feed`, and a command in
`data_prep/fetch.py`; budget, pauses, retries, cache and store are the same for all. Knows nothing
of HTTP and files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from pressroom.console import UserError
from pressroom.files import sha256_json


@dataclass(frozen=True, slots=True)
class Request:
    """One page to ask for, as anybody may know it: no secret stands in it."""

    url: str
    parameters: Mapping[str, str | int]
    label: str
    """Which part of the feed it is of, for a person."""
    live_on: str = ""
    """The day on which it is asked for, where articles may still come in meanwhile."""
    round: int = 0
    """How often a live part was fetched to its end on that day: its pages are then others."""

    @property
    def name(self) -> str:
        """16 hex digits: the same page has the same, by http and https alike."""
        parts = urlsplit(self.url)
        identity: list[Any] = [parts.netloc + parts.path, dict(self.parameters)]
        if self.live_on:
            identity.append([self.live_on, self.round])
        return sha256_json(identity)[:16]


@dataclass(frozen=True, slots=True)
class Page:
    """An answer that could be read."""

    records: Sequence[Any]
    left: int | None
    """How many records the feed says come behind them; None where it does not."""


class Again(Exception):
    """The same request may do better later.

    Args:
        cause: What went wrong, in a few words.
        retry_after: Seconds that the feed asks to wait.
        answer: What came, where it is not what a feed sends: worth keeping for a person.
    """

    def __init__(
        self, cause: str, *, retry_after: float | None = None, answer: bytes | None = None
    ) -> None:
        super().__init__(cause)
        self.cause, self.retry_after, self.answer = cause, retry_after, answer


class Refused(UserError):
    """The feed will say no until its user does something: which, the message says."""


class Stopped(Exception):
    """The fetch ends before its end; what there is stays, and the same command goes on."""


class Feed(Protocol):
    """A source of articles in pages."""

    @property
    def name(self) -> str:
        """A word for commands and folders."""

    @property
    def columns(self) -> Mapping[str, str]:
        """What is kept of a record: our name -> the feed's. `title` and `url` must be there."""

    @property
    def secrets(self) -> Mapping[str, str]:
        """Parameters that are added when a request is sent, and hidden wherever they show."""

    def parts(self) -> Sequence[Request]:
        """The first page of each part of what is asked for, in order."""

    def read(self, request: Request, status: int, body: bytes) -> Page:
        """Read an answer.

        Raises:
            Again: It may do better later.
            Refused: It will not, until its user does something.
            Stopped: It will, another day.
        """

    def after(self, request: Request, page: Page | None) -> Request | None:
        """The page behind one (None: one that could not be read); None behind the last."""
