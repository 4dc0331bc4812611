"""Exact duplicates out, and a held-out split that no later article changes.

Pure functions on articles. Knows nothing of files or tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator
from datetime import date

from data_prep.articles import Article, Reject


def drop_duplicates(items: Iterable[Article | Reject]) -> Iterator[Article | Reject]:
    """Keep the first article of each id and of each text; the others become rejects."""
    by_id: dict[str, str] = {}
    by_text: dict[bytes, str] = {}
    for item in items:
        if isinstance(item, Reject):
            yield item
            continue
        text = hashlib.sha256(f"{item.title}\n{item.description}".encode()).digest()
        if item.id in by_id:
            yield Reject(item.place, "duplicate url", f"first at {by_id[item.id]}")
        elif text in by_text:
            yield Reject(item.place, "duplicate text", f"first at {by_text[text]}")
        else:
            by_id[item.id] = by_text[text] = item.place
            yield item


def split(
    articles: list[Article], held_out: float | date
) -> tuple[list[Article], list[Article], list[Reject]]:
    """Divide articles into those to train on and those held out.

    Args:
        articles: Without duplicates.
        held_out: A share: which articles it takes follows from their ids alone, so an article
            stays on its side when others are added. Or a date: what was published on that day or
            later is held out.

    Returns:
        Articles to train on, articles held out, rejects (by date: articles without one). With a
        share, both sides have at least one article when there are two.
    """
    if isinstance(held_out, date):
        return _split_by_date(articles, held_out)
    limit = int(held_out * 2**64)
    positions = {a.id: _position(a.id) for a in articles}
    train = [a for a in articles if positions[a.id] >= limit]
    held = [a for a in articles if positions[a.id] < limit]
    if len(articles) > 1 and not (train and held):
        short, long = (train, held) if not train else (held, train)
        moved = (max if short is train else min)(long, key=lambda a: positions[a.id])
        long.remove(moved)
        short.append(moved)
    return train, held, []


def _position(article_id: str) -> int:
    """An article's place in 0 .. 2^64, independent of the hash that gave its id."""
    digest = hashlib.sha256(f"held out {article_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _split_by_date(
    articles: list[Article], first: date
) -> tuple[list[Article], list[Article], list[Reject]]:
    train: list[Article] = []
    held: list[Article] = []
    rejects: list[Reject] = []
    for article in articles:
        try:
            published = date.fromisoformat((article.published_at or "")[:10])
        except ValueError:
            rejects.append(
                Reject(article.place, "no date of publication", repr(article.published_at))
            )
            continue
        (held if published >= first else train).append(article)
    return train, held, rejects
