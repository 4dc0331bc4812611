"""Ask a feed for pages over HTTP, politely: within a budget, with pauses, again after failures.

Every attempt is counted before it is sent. A secret parameter is added here alone and shown
nowhere: libraries put URLs into exceptions and log lines, so neither leaves this module as it is.
Knows nothing of what a page means.
"""

import logging
import random
import time
from dataclasses import dataclass

import requests
import tenacity
import urllib3

from data_prep.budget import Budget
from data_prep.feed import Again, Feed, Page, Refused, Request, Stopped
from pressroom.console import hide, human_seconds, log

BODY_BYTES = 64 << 20
"""Of a longer answer the rest is not read."""
LONGEST_WAIT = 300.0
"""Seconds; whoever asks for more is asked another day."""
_LOGGERS = ("urllib3.connectionpool", "urllib3.connection", "urllib3.util.retry")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast and how patiently a feed is asked."""

    pause: float = 1.0
    """Seconds from one request to the next; after a failure the first wait, doubled each time."""
    attempts: int = 5
    timeout: float = 30.0
    """Seconds without a byte."""
    total_timeout: float = 180.0
    """Seconds for a whole answer."""


class _Hiding(logging.Filter):
    """Takes secrets out of a library's log lines, whoever has switched them on."""

    def __init__(self, client: "Client") -> None:
        super().__init__()
        self._client = client

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._client.without_secrets(record.getMessage()), ()
        record.exc_info = None
        return True


class Client:
    """Asks one feed."""

    def __init__(self, feed: Feed, budget: Budget, pace: Pace) -> None:
        self._feed, self._budget, self._pace = feed, budget, pace
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "pressroom"
        self._next = 0.0
        self._hiding = _Hiding(self)
        self.sent = 0

    def __enter__(self) -> "Client":
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._hiding)
        return self

    def __exit__(self, *exc: object) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._hiding)
        self._session.close()

    def without_secrets(self, text: str) -> str:
        """A text with a mark in each secret's place."""
        for name, secret in self._feed.secrets.items():
            text = hide(text, secret, f"<{name}>")
        return text

    def ask(self, request: Request) -> tuple[bytes, Page]:
        """Ask for a page until it comes.

        Returns:
            Its bytes without secrets, and what they say.

        Raises:
            Again: It does not come, however often it is asked for.
            Refused: The feed says no.
            Stopped: Budget or plan are spent, or the feed wants to be left alone for long.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            stop=tenacity.stop_after_attempt(self._pace.attempts),
            wait=self._wait,
            before_sleep=_tell,
            reraise=True,
        )
        return retrying(self._once, request)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        pause = self._pace.pause
        backoff = tenacity.wait_exponential_jitter(multiplier=pause, jitter=pause, max=60)(state)
        return max(backoff, _failure(state).retry_after or 0)

    def _once(self, request: Request) -> tuple[bytes, Page]:
        time.sleep(max(self._next - time.monotonic(), 0))
        self._next = time.monotonic() + self._pace.pause * random.uniform(1, 1.2)
        self._budget.spend(request.name)
        self.sent += 1
        status, retry_after, raw, is_whole = self._send(request)
        # latin-1 gives each byte back as it was.
        body = self.without_secrets(raw.decode("latin-1")).encode("latin-1")
        try:
            if not is_whole:
                raise Again("half an answer", answer=body)
            return body, self._feed.read(request, status, body)
        except Again as again:
            if retry_after is not None and retry_after > LONGEST_WAIT:
                wait = human_seconds(retry_after)
                raise Stopped(f"{again.cause}: it asks to be left alone for {wait}") from None
            again.retry_after = retry_after
            raise

    def _send(self, request: Request) -> tuple[int, float | None, bytes, bool]:
        """Status, Retry-After in seconds, body, and whether that is whole."""
        try:
            with self._session.get(
                request.url,
                params={**request.parameters, **self._feed.secrets},
                timeout=self._pace.timeout,
                allow_redirects=False,  # the key is for this host
                stream=True,
            ) as response:
                if response.is_redirect:
                    failure: Exception = Refused(
                        f"{request.url} sends on to another address, which will not get your key: "
                        "see --base-url"
                    )
                else:
                    return response.status_code, _retry_after(response), *self._body(response)
        except requests.RequestException as error:
            failure = _in_our_words(error, request)
        # Raised out here, so that not even the exception's context holds a URL with a key.
        raise failure

    def _body(self, response: requests.Response) -> tuple[bytes, bool]:
        body, end = bytearray(), time.monotonic() + self._pace.total_timeout
        try:
            for chunk in response.iter_content(1 << 14):
                body += chunk
                if len(body) > BODY_BYTES or time.monotonic() > end:
                    return bytes(body), False
        except requests.exceptions.ChunkedEncodingError:
            return bytes(body), False
        return bytes(body), True


def _in_our_words(error: requests.RequestException, request: Request) -> Exception:
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error):
        return Refused(
            f"{request.url}: its certificate is not one that this machine trusts; behind a "
            "company's proxy REQUESTS_CA_BUNDLE names the company's"
        )
    if isinstance(error, requests.Timeout):
        return Again("no answer in time")
    return Again(f"no connection ({type(error).__name__})")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds from now; None where the feed does not say, or not in a form that exists."""
    value = response.headers.get("Retry-After")
    if not value:
        return None
    try:
        return urllib3.Retry(retry_after_max=10**9).parse_retry_after(value)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def _failure(state: tenacity.RetryCallState) -> Again:
    assert state.outcome
    failure = state.outcome.exception()
    assert isinstance(failure, Again)
    return failure


def _tell(state: tenacity.RetryCallState) -> None:
    wait = human_seconds(state.upcoming_sleep)
    log.info("%s; attempt %d in %s", _failure(state).cause, state.attempt_number + 1, wait)
