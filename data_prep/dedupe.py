"""Which articles are copies of earlier ones, and on which side of the split a story stands.

Pure functions on arrays of A articles, all in the order of their files. Knows nothing of files,
texts or tokens.
"""

import hashlib
from collections.abc import Sequence
from datetime import date

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Sides = npt.NDArray[np.int8]
TRAIN, HELD_OUT, NEITHER = 0, 1, -1


def copies(ids_A: Sequence[int], texts_A: Sequence[int]) -> tuple[Indices, Indices]:
    """For each article the earlier one with its id, and the one with its text; -1: there is none.

    Only what is no copy itself counts as earlier.
    """
    same_id_A = np.full(len(ids_A), -1, np.int64)
    same_text_A = same_id_A.copy()
    by_id: dict[int, int] = {}
    by_text: dict[int, int] = {}
    for index, (id_, text) in enumerate(zip(ids_A, texts_A, strict=True)):
        if id_ in by_id:
            same_id_A[index] = by_id[id_]
        elif text in by_text:
            same_text_A[index] = by_text[text]
        else:
            by_id[id_] = by_text[text] = index
    return same_id_A, same_text_A


def divide_by_share(ids_A: Sequence[str], story_A: Indices, share: float) -> Sides:
    """Hold out about a share of the articles, whole stories at a time.

    The id of a story's first article decides, by itself: a story stays on its side when others are
    added behind it. Both sides have a story when there are two.

    Args:
        ids_A: Of each article.
        story_A: Of each article the index of the first one of its story.
        share: Between 0 and 1.
    """
    stories, number_A = np.unique(story_A, return_inverse=True)
    positions_S = np.array([_position(ids_A[first]) for first in stories], np.float64)
    held_S = positions_S < share
    if len(stories) > 1 and held_S.all():
        held_S[positions_S.argmax()] = False
    elif len(stories) > 1 and not held_S.any():
        held_S[positions_S.argmin()] = True
    return np.where(held_S[number_A], HELD_OUT, TRAIN).astype(np.int8)


def within(ids_A: Sequence[str], fraction: float) -> npt.NDArray[np.bool_]:
    """Whether an article is among the first so many; at least one is where there are any.

    Each article's own place decides: a smaller share is a part of every larger one.

    >>> ids = [str(n) for n in range(1000)]
    >>> [int(within(ids, share).sum()) for share in (0.001, 0.1, 0.5, 1)]
    [1, 90, 477, 1000]
    >>> bool((within(ids, 0.1) <= within(ids, 0.5)).all())
    True
    """
    places_A = np.array([_position(article, "fraction") for article in ids_A], np.float64)
    used_A = places_A < fraction
    if len(places_A) and not used_A.any():
        used_A[places_A.argmin()] = True
    return used_A


def _position(article_id: str, what: str = "held out") -> float:
    """An article's place in 0 .. 1, independent of the hash that gave its id, and for each use."""
    digest = hashlib.sha256(f"{what} {article_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def divide_by_date(
    published_A: Sequence[str | None], story_A: Indices, first: date
) -> tuple[Sides, npt.NDArray[np.bool_]]:
    """Hold out what was published on a day or later, and whose story did not begin before.

    Returns:
        Sides: of an article without a date, or of a later one of an older story, NEITHER; and
        whether an article has a date.
    """
    days_A = [_day(text) for text in published_A]
    dated_A = np.array([day is not None for day in days_A], bool)
    late_A = np.array([day is not None and day >= first for day in days_A], bool)
    old_stories = story_A[dated_A & ~late_A]
    side_A = np.where(late_A, HELD_OUT, TRAIN).astype(np.int8)
    side_A[~dated_A | (late_A & np.isin(story_A, old_stories))] = NEITHER
    return side_A, dated_A


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat((text or "")[:10])
    except ValueError:
        return None
