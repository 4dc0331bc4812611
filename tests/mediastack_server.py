"""MediaStack on this machine, as its documentation and its users describe it, over real HTTP.

It pages, filters, sorts, refuses what the real one refuses, and counts requests by key. Tests put
answers in its way: errors with every status, half and invalid ones, slow ones; and let articles
come in between two pages.
"""

import contextlib
import json
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY = "k3y/with+odd=signs&%41"
STATUS = {
    "invalid_access_key": 401,
    "missing_access_key": 401,
    "inactive_user": 401,
    "https_access_restricted": 403,
    "function_access_restricted": 403,
    "invalid_api_function": 404,
    "404_not_found": 404,
    "usage_limit_reached": 429,
    "rate_limit_reached": 429,
    "validation_error": 422,
    "internal_error": 500,
}
"""Every documented error code, and the status that comes with it."""


def article(number: int, day: str = "2026-01-01", **other: Any) -> dict[str, Any]:
    """An article as MediaStack sends one; a higher number was published later."""
    return {
        "author": None,
        "title": f"Story {number}",
        "description": f"What happened on {day}, told in full {number} times.",
        "url": f"https://news.example/{day}/{number}",
        "source": "Example News",
        "image": None,
        "category": "general",
        "language": "en",
        "country": "us",
        "published_at": f"{day}T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}+00:00",
        **other,
    }


@dataclass
class Answer:
    """An answer in place of the page, or of a part of it."""

    status: int = 200
    body: bytes | None = None
    """None: the page itself."""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """After so many bytes the connection breaks."""
    delay: float = 0.0


def error(
    code: str,
    status: int | None = None,
    *,
    message: str = "message",
    success: bool = True,
    **more: Any,
) -> Answer:
    """An error; `message="info"` and `success=False` are how some have seen it."""
    told: dict[str, Any] = {"code": code, message: f"This is {code}.", **more}
    text = json.dumps({"error": told} if success else {"success": False, "error": told}).encode()
    return Answer(STATUS[code] if status is None else status, text)


@dataclass
class Server:
    """The server's state, changed by tests as it runs."""

    url: str = ""
    articles: list[Any] = field(default_factory=list, repr=False)
    """Newest first."""
    answers: deque[Answer] = field(default_factory=deque)
    """In the way of the next requests."""
    always: Answer | None = None
    moves: deque[int] = field(default_factory=deque)
    """Behind each page: so many articles come in at the front, or go there."""
    monthly: int | None = None
    total: Any = "honest"
    asked: list[dict[str, str]] = field(default_factory=list, repr=False)
    """The parameters of each request."""
    by_key: Counter[str] = field(default_factory=Counter)
    hosts: list[str] = field(default_factory=list)
    before: Callable[[int], None] | None = None
    """Called with a request's number before it is answered."""

    @property
    def pages(self) -> list[tuple[str | None, int]]:
        """Date and offset of each request."""
        return [(asked.get("date"), int(asked["offset"])) for asked in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server
    lock: threading.Lock

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        state, parts = self.server_state, urlsplit(self.path)
        asked = dict(parse_qsl(parts.query, keep_blank_values=True))
        with self.lock:
            key = asked.pop("access_key", "")
            state.asked.append(asked)
            state.by_key[key] += 1
            state.hosts.append(self.headers["Host"])
            if state.before:
                state.before(len(state.asked))
            answer = state.always or (state.answers.popleft() if state.answers else Answer())
            body = answer.body
            if body is None:
                refused = self._refusal(parts.path, key, asked)
                answer = refused or answer
                body = refused.body if refused else self._page(asked)
        assert body is not None
        time.sleep(answer.delay)
        with contextlib.suppress(OSError):  # who asked has gone
            self._send(answer, body)

    def _send(self, answer: Answer, body: bytes) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: answer.cut])
        if answer.cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def _refusal(self, path: str, key: str, asked: dict[str, str]) -> Answer | None:
        state = self.server_state
        if not path.endswith("/v1/news"):
            return error("invalid_api_function")
        if not key:
            return error("missing_access_key")
        if key != KEY:
            return error("invalid_access_key")
        if state.monthly is not None and state.by_key[key] > state.monthly:
            return error("usage_limit_reached")
        if not (asked["limit"].isdigit() and 1 <= int(asked["limit"]) <= 100):
            return error("validation_error", context={"limit": [["OUT_OF_RANGE", "1 to 100"]]})
        return None

    def _page(self, asked: dict[str, str]) -> bytes:
        state = self.server_state
        found = [a for a in state.articles if _fits(a, asked)]
        if asked.get("sort") == "published_asc":
            found.reverse()
        offset, limit = int(asked["offset"]), int(asked["limit"])
        data = found[offset : offset + limit]
        total = len(found) if state.total == "honest" else state.total
        pagination = {"limit": limit, "offset": offset, "count": len(data), "total": total}
        move = state.moves.popleft() if state.moves else 0
        first = len(state.asked) * 100 + 10_000
        state.articles[:0] = [article(first + n, "2026-02-02") for n in range(move)]
        del state.articles[: max(-move, 0)]
        # JSON as others write it: slashes escaped, letters of other languages by their codes.
        return json.dumps({"pagination": pagination, "data": data}).replace("/", r"\/").encode()


def _fits(item: Any, asked: dict[str, str]) -> bool:
    if not isinstance(item, dict):
        return True
    day = item.get("published_at")
    if "date" in asked and isinstance(day, str):
        first, _, last = asked["date"].partition(",")
        if not first <= day[:10] <= (last or first):
            return False
    for name, of_item in (
        ("categories", "category"),
        ("languages", "language"),
        ("countries", "country"),
    ):
        words = asked.get(name, "").split(",") if asked.get(name) else []
        wanted = [word for word in words if not word.startswith("-")]
        value = item.get(of_item)
        if f"-{value}" in words or (wanted and value not in wanted):
            return False
    return True


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client was killed in mid-sentence


@contextlib.contextmanager
def serving(certificate: Path | None = None) -> Iterator[Server]:
    """A server that answers for as long as the block runs; by https with a certificate and key."""
    state = Server()
    handler = type("Handler", (_Handler,), {"server_state": state, "lock": threading.Lock()})
    server = _Http(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
