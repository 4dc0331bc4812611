"""Which articles are nearly the same, by their signatures alone.

    signatures   texts -> MinHash signatures; each text by itself, on any machine the same
    compare      signatures, in order -> which article nearly is an earlier one, and its story

Two texts are as alike as the share of runs of words that they have in common (Jaccard); the share
of equal hashes in their signatures estimates it (Broder 1997). Articles that share a band of hashes
fall into one bucket and are compared (Leskovec et al., Mining of Massive Datasets, chapter 3).
Names end in their shape: A articles, H hashes of a signature, B bands, C candidates.
Knows nothing of files, articles or splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from pressroom.words import words

Ints = npt.NDArray[np.int64]
Signatures = npt.NDArray[np.uint32]

NUM_HASHES = 128
RUN = 3
"""Words of a run. In 30 words, one that changes leaves 0.81 in common; with runs of 5, 0.68."""
_SEED = 1
_RECALL = 0.99
"""Share of the pairs exactly at a threshold that share a bucket; of those above it more do."""
_LOOKS = 8
"""Articles of a bucket that are looked at: its first and its latest. So time is linear."""


def signatures(texts: Sequence[str]) -> Signatures:
    """The signature of each text, [A, H]; case and punctuation do not count.

    A text of fewer words than a run is one run; one without any word is its own.
    """
    found: Signatures = np.empty((len(texts), NUM_HASHES), dtype=np.uint32)
    for signature_H, text in zip(found, texts, strict=True):
        # Not the library's batches: they start threads, and a process forked after that hangs.
        sketch = RMinHash(NUM_HASHES, _SEED)
        sketch.update(_runs(text))
        signature_H[:] = sketch.digest()
    return found


def _runs(text: str) -> list[str]:
    found = words(text.casefold())
    if not found:
        return [f"\n{text}"]
    return [" ".join(found[i : i + RUN]) for i in range(max(1, len(found) - RUN + 1))]


@dataclass(frozen=True)
class Compared:
    """What each article is beside the earlier ones."""

    first_A: Ints
    """The earlier kept article that it nearly is; -1: none, it is kept."""
    likeness_A: npt.NDArray[np.float64]
    """How alike the two are, 0 to 1; 0 where there is none."""
    story_A: Ints
    """The first article of its story; itself when alone."""


def compare(
    signatures_AH: Signatures, near_duplicate: float | None, same_story: float | None
) -> Compared:
    """Hold each article against the earlier ones that are kept.

    Args:
        signatures_AH: In the order in which articles are kept: the first of some alike.
        near_duplicate: Likeness from which on the later article is not kept; None: all are.
        same_story: Likeness from which on two kept articles are of one story; None: none is. What
            is not kept is of the story of the article that it nearly is.

    Returns:
        The result follows from the arguments alone. It takes up to 0.8 kB an article.
    """
    count = len(signatures_AH)
    first_A = np.full(count, -1, dtype=np.int64)
    likeness_A = np.zeros(count)
    thresholds = [t for t in (near_duplicate, same_story) if t is not None]
    if not thresholds:
        return Compared(first_A, likeness_A, np.arange(count))
    stories = _Stories(count)
    buckets = _Buckets(signatures_AH, min(thresholds))
    for article in buckets.shared():
        candidates_C = buckets.kept_beside(article)
        if len(candidates_C):
            likeness_C = (signatures_AH[candidates_C] == signatures_AH[article]).mean(axis=1)
            best = likeness_C.argmax()
            if near_duplicate is not None and likeness_C[best] >= near_duplicate:
                first_A[article], likeness_A[article] = candidates_C[best], likeness_C[best]
                stories.join(article, int(candidates_C[best]))
                continue
            if same_story is not None:
                for other in candidates_C[likeness_C >= same_story].tolist():
                    stories.join(article, other)
        buckets.keep(article)
    return Compared(first_A, likeness_A, stories.firsts())


class _Buckets:
    """Kept articles by the bands of their signatures.

    Buckets that only one article falls into are left out: most are such. The members of a bucket
    stand in one array with all others, from the bucket's start on.
    """

    def __init__(self, signatures_AH: Signatures, threshold: float) -> None:
        weights_H = np.random.RandomState(_SEED).randint(0, 2**63, NUM_HASHES, dtype=np.uint64)
        columns, sizes, number = [], [], 0
        for band in _bands(threshold):
            key_A = _weighted(signatures_AH[:, band], weights_H[band] * np.uint64(2) + np.uint64(1))
            _, bucket_A, size = np.unique(key_A, return_inverse=True, return_counts=True)
            names = np.where(size > 1, number + np.cumsum(size > 1) - 1, -1).astype(np.int32)
            columns.append(names[bucket_A])
            sizes.append(size[size > 1].astype(np.int32))
            number += len(sizes[-1])
        self._buckets_AB = np.stack(columns, axis=1)
        size = np.concatenate(sizes)
        self._start = np.cumsum(size, dtype=np.int64) - size
        self._filled = np.zeros(number, dtype=np.int32)
        self._members = np.empty(size.sum(dtype=np.int64), dtype=np.int32)

    def shared(self) -> list[int]:
        """The articles that share a bucket with another, in order."""
        found: list[int] = np.flatnonzero((self._buckets_AB >= 0).any(axis=1)).tolist()
        return found

    def kept_beside(self, article: int) -> Ints:
        """Of each of an article's buckets the first and the latest members, [C], ascending."""
        buckets = self._of(article)
        filled = self._filled[buckets][:, None]
        look = np.arange(_LOOKS)
        place = self._start[buckets][:, None] + np.where(look > 0, filled - look, 0)
        candidates_C: Ints = np.unique(self._members[place[look < filled]])
        return candidates_C

    def keep(self, article: int) -> None:
        """Put an article into its buckets."""
        buckets = self._of(article)
        self._members[self._start[buckets] + self._filled[buckets]] = article
        self._filled[buckets] += 1

    def _of(self, article: int) -> npt.NDArray[np.int32]:
        row_B = self._buckets_AB[article]
        buckets: npt.NDArray[np.int32] = row_B[row_B >= 0]
        return buckets


def _bands(threshold: float) -> list[slice]:
    """Bands as long as the recall allows, and the whole signature: what is equal meets."""
    rows = max(
        (
            rows
            for rows in range(1, NUM_HASHES + 1)
            if 1 - (1 - threshold**rows) ** (NUM_HASHES // rows) >= _RECALL
        ),
        default=1,
    )
    starts = range(0, NUM_HASHES - rows + 1, rows)
    return [*(slice(start, start + rows) for start in starts), slice(0, NUM_HASHES)]


def _weighted(hashes: Signatures, weights: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One number for each row of hashes; others may share it, so likeness is looked at anyway."""
    key: npt.NDArray[np.uint64] = np.zeros(len(hashes), dtype=np.uint64)
    for column, weight in enumerate(weights):
        key += hashes[:, column] * weight
        key ^= key >> np.uint64(29)
    return key


class _Stories:
    """Articles that hang together, named by the first of them."""

    def __init__(self, count: int) -> None:
        self._earlier = list(range(count))

    def join(self, one: int, other: int) -> None:
        """Two articles, and all that hang together with them, are of one story."""
        early, late = sorted((self._first(one), self._first(other)))
        self._earlier[late] = early

    def _first(self, article: int) -> int:
        while (earlier := self._earlier[article]) != article:
            self._earlier[article] = article = self._earlier[earlier]
        return article

    def firsts(self) -> Ints:
        """The first article of each article's story."""
        return np.array([self._first(a) for a in range(len(self._earlier))], dtype=np.int64)
