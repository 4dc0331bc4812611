"""Articles: what one is, and how a record becomes one.

Every record of a file becomes an article or a listed reject with its cause. Knows nothing of
kinds of files, prompts or tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from data_prep.clean import preprocess_text
from data_prep.readers import WHOLE, Portion, Unreadable, read_records
from pressroom.columns import Columns
from pressroom.identity import article_id

OWN_NAMES = asdict(Columns())
"""The columns of a file that calls our fields as we do."""
_OPTIONAL = ("category", "source")


@dataclass(frozen=True, slots=True)
class Article:
    """A cleaned article."""

    id: str
    title: str
    description: str
    url: str | None
    published_at: str | None
    category: str | None
    source: str | None
    """The outlet."""
    place: str
    """`file:line`, for a person."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A line that did not become a row, and why."""

    place: str
    cause: str
    detail: str = ""
    id: str = ""
    """Of the article, where it was one."""


def read_articles(
    path: Path,
    name: str,
    *,
    lower_case: bool,
    columns: Mapping[str, str] = OWN_NAMES,
    portion: Portion = WHOLE,
) -> Iterator[Article | Reject]:
    """Read and clean the articles of one file, in its order.

    Args:
        path: A JSONL, Parquet or Arrow file.
        name: What the file is called in rejects and errors.
        lower_case: Whether titles and descriptions are lower-cased.
        columns: Field -> what it is called in the file.
        portion: Which part of the file.

    Raises:
        UserError: The file cannot be read.
    """
    for number, record in read_records(path, name, columns, portion):
        place = f"{name}:{number}"
        if isinstance(record, Unreadable):
            yield Reject(place, record.cause, record.detail)
        else:
            yield to_article(record, place, lower_case, columns)


_HINTS = {
    "not UTF-8": "convert it: iconv -f LATIN1 -t UTF-8",
    "not JSON": "JSONL holds one JSON object a line",
    "not an object": "JSONL holds one JSON object a line",
    "no title": "data.columns says what it is called",
    "no description": "data.columns says what it is called",
}


_MALFORMED = frozenset({*_HINTS, "not readable", "url is not one"})


def nothing_good(first: Reject) -> str:
    """Say of a file without one good article what its first reject was, and what may help."""
    name = first.place.rpartition(":")[0]
    detail = f" ({first.detail})" if first.detail else ""
    hint = f"; {_HINTS[first.cause]}" if first.cause in _HINTS else ""
    return f"{name}: not one good article; {first.place}: {first.cause}{detail}{hint}"


def to_article(
    record: Any, place: str, lower_case: bool, columns: Mapping[str, str] = OWN_NAMES
) -> Article | Reject:
    """Clean one record of a feed: a mapping whose names for our fields `columns` tells."""
    if not isinstance(record, dict):
        return Reject(place, "not an object", f"a JSON {type(record).__name__}")
    values = {field: record.get(column) for field, column in columns.items()}
    if isinstance(values["published_at"], date):
        values["published_at"] = values["published_at"].isoformat()
    for field in _OPTIONAL:
        if not isinstance(values[field], str):
            values[field] = None
    for field, value in values.items():
        if not isinstance(value, str | None):
            return Reject(place, f"{field} is not text", f"{value!r:.60}", _id_of(values["url"]))
    title = preprocess_text(values["title"] or "", lower_case=lower_case)
    description = preprocess_text(
        values["description"] or "", lower_case=lower_case, cut_endings=True
    )
    for field, text in (("title", title), ("description", description)):
        if not text:
            there, column = columns[field] in record, columns[field]
            detail = "" if there else f"no {column!r}; it has {_listed(record)}"
            return Reject(place, f"no {field}", detail, _id_of(values["url"]))
    url = values["url"] or None
    try:
        identity = article_id(url, title, description)
    except ValueError as error:
        return Reject(place, "url is not one", str(error))
    return Article(
        id=identity,
        title=title,
        description=description,
        url=url,
        published_at=values["published_at"] or None,
        category=" ".join((values["category"] or "").split()) or None,
        source=" ".join((values["source"] or "").split()) or None,
        place=place,
    )


def _id_of(url: Any) -> str:
    """The id that a reject would have by its URL, so that it can be found; empty without one."""
    try:
        return article_id(url, "", "") if isinstance(url, str) and url else ""
    except ValueError:
        return ""


def is_malformed(cause: str) -> bool:
    """Whether a reject was no article at all, by its form; else it was one that is not wanted."""
    return cause in _MALFORMED or cause.endswith(" is not text")


def _listed(names: Iterable[str]) -> str:
    return f"{', '.join(names)!s:.100}" or "nothing"
