"""The first step: a portion of a file -> cleaned articles and rejects, one row for each record.

What can be said of a record by itself is said here: is it an article, may it be used, is it good
enough, what is it like. Knows nothing of other portions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep import near
from data_prep.articles import Article, Reject, read_articles
from data_prep.quality import judge
from data_prep.readers import Portion
from pressroom.sections import Data

_BATCH_ROWS = 1000
_TEXTS = ("id", "title", "description", "place", "url", "published_at", "category", "source")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("text_hash", pa.binary(16)),
        ("signature", pa.list_(pa.uint32(), near.NUM_HASHES)),
        # Of a reject; null with an article.
        ("cause", pa.string()),
        ("detail", pa.string()),
    ]
)


def scan(
    path: Path, file: Path, name: str, portion: Portion, data: Data, takedown: frozenset[str]
) -> None:
    """Write what a portion's records are, as an Arrow file of `SCHEMA`.

    Args:
        path: Where to.
        file: A file of articles.
        name: What it is called in rejects and errors.
        portion: Which part of it.
        data: Says how text is cleaned and what is good enough.
        takedown: Ids of articles that must not be used.

    Raises:
        UserError: The file is damaged, or lacks a column.
    """
    items = read_articles(
        file, name, lower_case=data.lower_case, columns=asdict(data.columns), portion=portion
    )
    judged = _judged(items, data, takedown)
    compared = data.near_duplicate is not None or data.same_story is not None
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        while some := list(islice(judged, _BATCH_ROWS)):
            writer.write_batch(_batch(some, compared))


def _judged(
    items: Iterable[Article | Reject], data: Data, takedown: frozenset[str]
) -> Iterator[Article | Reject]:
    for item in items:
        if isinstance(item, Reject):
            yield item
        elif item.id in takedown:
            yield Reject(item.place, "taken down", "", item.id)
        elif poor := judge(item, data.quality):
            yield Reject(item.place, *poor, item.id)
        else:
            yield item


def _batch(items: Sequence[Article | Reject], compared: bool) -> pa.RecordBatch:
    """Rows of `SCHEMA`; a reject has no text, and what is not compared no signature."""
    articles = [item if isinstance(item, Article) else None for item in items]
    rejects = [item if isinstance(item, Reject) else None for item in items]
    columns = {name: [_text(getattr(item, name, None)) for item in items] for name in _TEXTS}
    columns["cause"] = [reject.cause if reject else None for reject in rejects]
    columns["detail"] = [_text(reject.detail) if reject else None for reject in rejects]
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    arrays["text_hash"] = pa.array([a and _text_hash(a) for a in articles], pa.binary(16))
    signatures_AH = np.zeros((len(items), near.NUM_HASHES), np.uint32)
    if compared:
        texts = [f"{a.title}\n{a.description}" for a in articles if a]
        signatures_AH[[a is not None for a in articles]] = near.signatures(texts)
    arrays["signature"] = pa.FixedSizeListArray.from_arrays(
        pa.array(signatures_AH.ravel()), near.NUM_HASHES
    )
    return pa.record_batch([arrays[field.name] for field in SCHEMA], schema=SCHEMA)


def _text(value: str | None) -> str | None:
    """A feed's text as UTF-8 can hold it: JSON can name half of a character."""
    return value and value.encode("utf-8", "replace").decode()


def _text_hash(article: Article) -> bytes:
    text = f"{article.title}\n{article.description}"
    return hashlib.sha256(text.encode()).digest()[:16]
