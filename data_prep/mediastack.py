"""MediaStack as a feed: its parameters, its pages, its errors.

Source: https://mediastack.com/documentation; where notes of its users differ from it, both are
taken. Knows nothing of HTTP, retries and files.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date, timedelta
from typing import Any, NoReturn
from urllib.parse import urlsplit

from data_prep.feed import Again, Page, Refused, Request, Stopped
from pressroom.console import UserError

BASE = "https://api.mediastack.com"
KEY = "MEDIASTACK_ACCESS_KEY"
CATEGORIES = ("general", "business", "entertainment", "health", "science", "sports", "technology")
LANGUAGES = ("ar", "de", "en", "es", "fr", "he", "it", "nl", "no", "pt", "ru", "se", "zh")
SORTS = ("published_desc", "published_asc", "popularity")
_FIELDS = "title description url published_at source author category language country image"
COLUMNS = {name: name for name in _FIELDS.split()}
_KEY_WRONG = f"copy it anew from https://mediastack.com/dashboard into {KEY}"
_PLAN = "your plan does not have what was asked for"
_REFUSALS = {
    "invalid_access_key": f"the key is not one that it knows: {_KEY_WRONG}",
    "missing_access_key": f"it saw no key: {_KEY_WRONG}",
    "inactive_user": "the account is not active: see https://mediastack.com/dashboard",
    "https_access_restricted": "your plan has no https: a paid one does, or --allow-http "
    "--base-url http://api.mediastack.com sends the key in clear",
    "function_access_restricted": f"{_PLAN}: dates (--from, --to) need a paid one",
    "invalid_api_function": "it has no such function: see --base-url",
    "404_not_found": "it has no such page: see --base-url",
    "validation_error": "it does not take a parameter",
}
"""Error code -> what to do; nothing is asked again."""
_LATER = {"rate_limit_reached", "internal_error"}
_BY_STATUS = {401: "invalid_access_key", 403: "function_access_restricted", 404: "404_not_found"}


@dataclass(frozen=True, kw_only=True)
class MediaStack:
    """A query to MediaStack. Lists take `-x` for all but x."""

    key: str = field(default="", repr=False)
    keywords: str = ""
    sources: str = ""
    categories: str = ""
    countries: str = ""
    languages: str = ""
    sort: str = ""
    first_day: date | None = None
    last_day: date | None = None
    today: date
    """A window that reaches it is live."""
    days: int = 1
    """Of a window."""
    limit: int = 100
    """Articles a page."""
    base_url: str = BASE
    allow_http: bool = False

    name = "mediastack"
    columns = COLUMNS

    @property
    def secrets(self) -> Mapping[str, str]:
        """The key, which MediaStack takes as a parameter alone."""
        return {"access_key": self.key}

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise UserError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        known = {"categories": CATEGORIES, "languages": LANGUAGES}
        for name in ("sources", "categories", "countries", "languages"):
            for word in _words(getattr(self, name)):
                if name in known:
                    if word not in known[name]:
                        yield f"--{name}: {_not_one_of(word, known[name])}"
                elif not re.fullmatch("[a-z]{2}" if name == "countries" else r"[\w.-]+", word):
                    kind = "a country's two letters" if name == "countries" else "a source's name"
                    yield f"--{name}: {word!r} is not {kind}"
        if self.sort and self.sort not in SORTS:
            yield f"--sort: {_not_one_of(self.sort, SORTS)}"
        if not 1 <= self.limit <= 100:
            yield f"--limit: {self.limit}: a page has 1 to 100 articles"
        if self.days < 1:
            yield f"--days: {self.days}: a window has at least one day"
        first, last = self.first_day, self.last_day
        if last and not first:
            yield "--to: needs --from"
        if first and first > self.today:
            yield f"--from: {first} is yet to come (today is {self.today}, UTC)"
        elif first and last and last < first:
            yield f"--to: {last} is before --from {first}"
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            yield f"--base-url: {self.base_url!r} is not of the form https://HOST[/PATH]"
        elif parts.username or parts.password:
            yield "--base-url: has a name or a password in it"
        elif parts.scheme == "http" and not self.allow_http:
            yield f"--base-url: {self.base_url} shows your key to all: https, or --allow-http"

    def parts(self) -> list[Request]:
        """One window of `days` after another; without dates one, of what is newest."""
        if self.first_day is None:
            return [self._first({}, "newest", live_on=f"{self.today}")]
        last = min(self.last_day or self.today, self.today)
        starts = range(0, (last - self.first_day).days + 1, self.days)
        return [self._window(self.first_day + timedelta(days=n), last) for n in starts]

    def _window(self, start: date, last: date) -> Request:
        end = min(start + timedelta(days=self.days - 1), last)
        days = f"{start}" if start == end else f"{start},{end}"
        live_on = f"{self.today}" if end >= self.today else ""
        return self._first({"date": days}, days, live_on=live_on)

    def _first(self, dates: dict[str, str], label: str, *, live_on: str) -> Request:
        given: dict[str, str] = {
            f.name: ",".join(_words(value, keep_sign=True))
            for f in fields(self)
            if f.name in ("keywords", "sources", "categories", "countries", "languages", "sort")
            and (value := getattr(self, f.name))
        }
        parameters: dict[str, str | int] = {**given, **dates, "limit": self.limit, "offset": 0}
        return Request(f"{self.base_url.rstrip('/')}/v1/news", parameters, label, live_on)

    def read(self, request: Request, status: int, body: bytes) -> Page:
        """Read an answer: an error's code counts more than its status, which can be 200."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict) and (answer.get("error") or answer.get("success") is False):
            _raise(answer.get("error"), status, body)
        if status != 200:
            _raise(None, status, body)
        records = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(records, list):
            cause = "not JSON" if answer is None else "no list of articles in it"
            raise Again(cause, answer=body)
        pagination = answer.get("pagination")
        total = pagination.get("total") if isinstance(pagination, dict) else None
        met = int(request.parameters["offset"]) + len(records)
        return Page(records, total - met if type(total) is int and total >= met else None)

    def after(self, request: Request, page: Page | None) -> Request | None:
        """The next offset; of a live part one back, to see that the pages still meet."""
        step = int(request.parameters["limit"])
        if page is not None:
            count = len(page.records)
            if not count or page.left == 0 or (page.left is None and count < step):
                return None
            step = max(count - bool(request.live_on), 1)
        offset = int(request.parameters["offset"]) + step
        return replace(request, parameters={**request.parameters, "offset": offset})


def access_key(value: str | None) -> str:
    """The key, from the environment's value.

    Raises:
        UserError: It cannot be one.
    """
    if not value:
        raise UserError(
            f"{KEY} is not set: put your key there, from https://mediastack.com/dashboard. Without "
            "one, a recipe's data.articles takes files and data sets of a hub"
        )
    if not re.fullmatch(r"[!-~]{8,}", value):
        raise UserError(f"{KEY}: is not a key: one is at least 8 letters and digits: {_KEY_WRONG}")
    return value


def _words(text: str, *, keep_sign: bool = False) -> Sequence[str]:
    words = [word.strip() for word in text.split(",")]
    return [word if keep_sign else word.removeprefix("-") for word in words if word]


def _not_one_of(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"{word!r} is not one of {', '.join(known)}" + (
        f"; did you mean {close[0]}?" if close else ""
    )


def _raise(error: Any, status: int, body: bytes) -> NoReturn:
    """Tell what an error asks of us: to end, to wait, or to come another day."""
    told: dict[str, Any] = error if isinstance(error, dict) else {"code": error}
    codes = [c for c in (told.get("code"), told.get("type")) if isinstance(c, str)]
    known = [c for c in codes if c in _REFUSALS or c in _LATER or c == "usage_limit_reached"]
    code = (known or codes or [_BY_STATUS.get(status, "")])[0]
    message = next((m for m in (told.get("message"), told.get("info")) if isinstance(m, str)), "")
    if context := told.get("context"):
        message += f" {json.dumps(context, ensure_ascii=False)}"
    words = f"MediaStack: {code or f'status {status}'}" + (f" ({message:.300})" if message else "")
    words = words.encode("utf-8", "backslashreplace").decode()
    if code == "usage_limit_reached":
        raise Stopped(f"{words}: the plan's requests of this month are used up")
    if code not in _REFUSALS and (code in _LATER or status in (408, 425, 429) or status >= 500):
        raise Again(words)
    if advice := _REFUSALS.get(code) or _REFUSALS.get(_BY_STATUS.get(status, "")):
        raise Refused(f"{words}: {advice}")
    if status == 200:
        raise Again(words, answer=body)
    raise Refused(f"{words}: status {status} is none that waiting helps")
