"""Articles: what one is, and readers for JSONL and Parquet.

Every line of a file becomes an article or a listed reject with its cause. Knows nothing of
prompts or tokens.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.clean import preprocess_text
from pressroom.console import UserError

_FIELDS = ("title", "description", "url", "published_at")
_TRACKING = frozenset({"fbclid", "gclid", "msclkid", "mc_cid", "mc_eid", "cmpid", "smid", "ref"})


@dataclass(frozen=True, slots=True)
class Article:
    """A cleaned article."""

    id: str
    title: str
    description: str
    url: str | None
    published_at: str | None
    source: str
    """`file:line`, for a person."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A line that did not become a row, and why."""

    source: str
    cause: str
    detail: str = ""


def canonical_url(url: str) -> str:
    """A URL without what changes from one visit to the next.

    The scheme, `www.`, the fragment and tracking parameters go; other parameters stay, for many
    sites tell their articles apart by `?id=` alone.
    """
    parts = urlsplit(url.strip())
    query = [
        (key, value)
        for key, value in sorted(parse_qsl(parts.query))
        if key.lower() not in _TRACKING and not key.lower().startswith("utm_")
    ]
    host = (parts.hostname or "").removeprefix("www.")
    return f"{host}{parts.path.rstrip('/')}" + (f"?{urlencode(query)}" if query else "")


def article_id(url: str | None, title: str, description: str) -> str:
    """16 hex digits: of the canonical URL, else of the cleaned text."""
    identity = f"url {canonical_url(url)}" if url else f"text {title}\n{description}"
    return hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:16]


def read_articles(path: Path, name: str, *, lower_case: bool) -> Iterator[Article | Reject]:
    """Read and clean the articles of one file, in its order.

    Args:
        path: A JSONL or Parquet file.
        name: What the file is called in rejects and errors.
        lower_case: Whether titles and descriptions are lower-cased.

    Raises:
        UserError: The file is of no known kind or has not one good article.
    """
    readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise UserError(f"{name}: unknown kind of file; known: {', '.join(readers)}")
    good, first_reject = 0, None
    for number, record in reader(path, name):
        source = f"{name}:{number}"
        if isinstance(record, _Unreadable):
            item: Article | Reject = Reject(source, record.cause, record.detail)
        else:
            item = to_article(record, source, lower_case)
        good += isinstance(item, Article)
        if isinstance(item, Reject) and first_reject is None:
            first_reject = item
        yield item
    if not good:
        why = f"{first_reject.source}: {first_reject.cause}" if first_reject else "no lines"
        detail = f" ({first_reject.detail})" if first_reject and first_reject.detail else ""
        raise UserError(f"{name}: not one good article; {why}{detail}")


def to_article(record: Any, source: str, lower_case: bool) -> Article | Reject:
    """Clean one record of a feed: a mapping with MediaStack's field names."""
    if not isinstance(record, dict):
        return Reject(source, "not an object", f"a JSON {type(record).__name__}")
    if isinstance(record.get("published_at"), date):
        record = {**record, "published_at": record["published_at"].isoformat()}
    for name in _FIELDS:
        if not isinstance(record.get(name), str | None):
            return Reject(source, f"{name} is not text", f"{record[name]!r:.60}")
    title = preprocess_text(record.get("title") or "", lower_case=lower_case)
    description = preprocess_text(record.get("description") or "", lower_case=lower_case)
    for name, value in (("title", title), ("description", description)):
        if not value:
            return Reject(source, f"no {name}")
    url = record.get("url") or None
    try:
        identity = article_id(url, title, description)
    except ValueError as error:
        return Reject(source, "url is not one", str(error))
    return Article(identity, title, description, url, record.get("published_at") or None, source)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A line that is no record at all."""

    cause: str
    detail: str


def _read_jsonl(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield number, _Unreadable("not UTF-8", f"byte {error.start} of the line")
            except (ValueError, RecursionError) as error:
                yield number, _Unreadable("not JSON", str(error))


def _read_parquet(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: not Parquet: {error}") from None
    columns = [field for field in _FIELDS if field in file.schema_arrow.names]
    missing = [field for field in ("title", "description") if field not in columns]
    if missing:
        have = ", ".join(file.schema_arrow.names)
        raise UserError(f"{name}: has no column {' or '.join(missing)}; it has {have}")
    number = 0
    try:
        for batch in file.iter_batches(columns=columns):
            for row in range(len(batch)):
                number += 1
                try:
                    yield number, {field: batch[field][row].as_py() for field in columns}
                except UnicodeDecodeError as error:
                    yield number, _Unreadable("not UTF-8", str(error))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: damaged behind row {number}: {error}") from None
