"""What texts have in common with the articles that were trained on, word for word: near-copies.

Sought are runs of tokens that stand both in a text and in an article's description, however many
articles there are: the texts' windows of `RUN` tokens are hashed, and the training rows pass by
once, hashed the same way. Every match is then compared token by token. Knows nothing of models.

W windows of all texts, N tokens of a batch, P its pieces, M matches, R runs.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pressroom.console import Progress
from pressroom.dataset import Manifest
from pressroom.index import on_rows, read_index
from pressroom.ragged import ranges
from pressroom.rows import SCHEMA, Pieces, batches

RUN = 11
"""Tokens that count as shared when they follow each other in both. "Longer than 10 tokens" is what
Llama 2's authors call contamination: Touvron et al. 2023, appendix A.6."""
LONG = 50
"""Tokens in one run from which on a text is a near-copy: Lee et al. 2022, section 4.1."""
SHARE = 0.5
"""Of a text's tokens in runs of one article, the same."""
_MOST = 8
"""Articles of a shard that are remembered of a text."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SIEVE_BITS = np.uint64(22)

Ints = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """What one article has of a text."""

    article: str
    """Its id."""
    tokens: int
    """Of the text, in runs."""
    longest: int
    """Tokens of the longest run."""
    start: int
    """Where that begins, in the text."""


@dataclass(frozen=True)
class Shared:
    """What of a text stands in articles."""

    num_tokens: int
    """Of the text."""
    tokens: int
    """In a run of any article."""
    sources: tuple[Source, ...]
    """The articles that have most of it; of many, some."""

    @property
    def is_near_copy(self) -> bool:
        """Whether one article has half of the text, or a long run of it."""
        return any(s.longest >= LONG or s.tokens >= SHARE * self.num_tokens for s in self.sources)


class _Run(NamedTuple):
    """Tokens of a text that follow each other in a piece."""

    place: tuple[int, int]
    """The row of the shard, and which of its pieces."""
    start: int
    length: int


def search(folder: Path, manifest: Manifest, texts: Sequence[Sequence[int]]) -> list[Shared]:
    """Look for texts in the descriptions of a dataset's training articles.

    Args:
        folder: The dataset's; its files are whole.
        manifest: Its own.
        texts: Token ids of each, without those of prompts, BOS and eos.
    """
    wanted = _Windows(texts)
    shards = [shard for shard in manifest.shards if shard.split == "train"]
    index = read_index(folder)
    found: list[dict[str, list[_Run]]] = [defaultdict(list) for _ in texts]
    with (
        ThreadPoolExecutor() as pool,
        Progress("near-copies", sum(s.rows for s in shards), "row") as progress,
    ):
        paths = (folder / shard.file for shard in shards)
        for shard, runs in zip(shards, pool.map(wanted.runs_in, paths), strict=True):
            ids = on_rows(index, shard.file) if runs else {}
            for text, run in runs:
                found[text][ids[run.place]].append(run)
            progress.advance(shard.rows)
    return [
        Shared(len(text), int(np.sum(covered)), _sources(runs))
        for text, covered, runs in zip(texts, wanted.covered(), found, strict=True)
    ]


def _sources(by_article: dict[str, list[_Run]]) -> tuple[Source, ...]:
    """Articles by how much of a text they have, and of its longest run."""
    sources = []
    for article, runs in by_article.items():
        longest = max(runs, key=lambda run: (run.length, -run.start))
        covered = {t for run in runs for t in range(run.start, run.start + run.length)}
        sources.append(Source(article, len(covered), longest.length, longest.start))
    return tuple(sorted(sources, key=lambda s: (-s.tokens, -s.longest, s.article))[:_MOST])


class _Windows:
    """All runs of `RUN` tokens of some texts, by their hashes.

    Args:
        texts: Token ids of each.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._ids = np.fromiter((i for text in texts for i in text), np.int64, self._lengths.sum())
        windows = np.maximum(self._lengths - RUN + 1, 0)
        at_W = ranges(self._starts, windows)
        hashes_W = _hashes(self._ids)[at_W] if len(at_W) else np.empty(0, np.uint64)
        order = np.argsort(hashes_W, kind="stable")
        self._at = at_W[order]
        self._hashes, self._first, self._count = np.unique(
            hashes_W[order], return_index=True, return_counts=True
        )
        self._sieve = np.zeros(1 << int(_SIEVE_BITS), dtype=bool)
        self._sieve[self._hashes >> (np.uint64(64) - _SIEVE_BITS)] = True
        self._covered = np.zeros(len(self._ids), dtype=bool)

    def covered(self) -> Iterator[npt.NDArray[np.bool_]]:
        """Of each text, which of its tokens stand in a run of what has passed by."""
        for start, length in zip(self._starts, self._lengths, strict=True):
            yield self._covered[start : start + length]

    def runs_in(self, shard: Path) -> list[tuple[int, _Run]]:
        """The runs of a shard, by text: of a text those of the pieces that have most of it."""
        found, row = [], 0
        for batch in batches(shard, SCHEMA):
            pieces = Pieces.of(batch)
            at_M, position_M, piece_M = self._matches(pieces)
            if len(at_M):
                self._covered[(at_M[:, None] + np.arange(RUN)).ravel()] = True
                found += _most(self._runs(pieces, at_M, position_M, piece_M, row))
            row += len(batch)
        return _most(found)

    def _matches(self, pieces: Pieces) -> tuple[Ints, Ints, Ints]:
        """Windows of the texts that stand in descriptions: where in both, and in which piece."""
        hashes_N = _hashes(pieces.ids_N)
        maybe = np.flatnonzero(self._sieve[hashes_N >> (np.uint64(64) - _SIEVE_BITS)])
        place = np.searchsorted(self._hashes, hashes_N[maybe])
        place[place == len(self._hashes)] = 0
        same = self._hashes[place] == hashes_N[maybe] if len(self._hashes) else place > 0
        position, place = maybe[same], place[same]
        piece = np.searchsorted(pieces.ends_P, position, side="right")
        begins = pieces.starts_P[piece] + pieces.prompts_P[piece]
        inside = (position >= begins) & (position + RUN <= pieces.ends_P[piece])
        position, place, piece = position[inside], place[inside], piece[inside]
        times = self._count[place]  # a text may say the same twice, and two texts may
        at_M = self._at[ranges(self._first[place], times)]
        position_M, piece_M = np.repeat(position, times), np.repeat(piece, times)
        spread = np.arange(RUN)
        there = self._ids[at_M[:, None] + spread] == pieces.ids_N[position_M[:, None] + spread]
        good = there.all(axis=1)
        return at_M[good], position_M[good], piece_M[good]

    def _runs(
        self, pieces: Pieces, at_M: Ints, position_M: Ints, piece_M: Ints, first_row: int
    ) -> Iterator[tuple[int, _Run]]:
        """Matches that follow each other in text and piece, as one run."""
        text_M = np.searchsorted(self._starts, at_M, side="right") - 1
        order = np.lexsort((at_M, position_M - at_M, piece_M, text_M))
        at, position = at_M[order], position_M[order]
        text, piece = text_M[order], piece_M[order]
        # No window reaches into another text or piece, so whoever does not has a gap there.
        new = np.ones(len(at), dtype=bool)
        new[1:] = (np.diff(at) != 1) | (np.diff(position) != 1)
        begins_R = np.flatnonzero(new)
        lengths_R = np.diff(np.append(begins_R, len(at))) + RUN - 1
        firsts = np.cumsum(pieces.pieces_R) - pieces.pieces_R
        row_R = np.searchsorted(firsts, piece[begins_R], side="right") - 1
        which_R = piece[begins_R] - firsts[row_R]
        start_R = at[begins_R] - self._starts[text[begins_R]]
        columns = (text[begins_R], row_R + first_row, which_R, start_R, lengths_R)
        for whose, row, which, start, length in zip(*map(np.ndarray.tolist, columns), strict=True):
            yield whose, _Run((row, which), start, length)


def _most(runs: Iterable[tuple[int, _Run]]) -> list[tuple[int, _Run]]:
    """Of each text the runs of the pieces that have most of it."""
    by_text: dict[int, dict[tuple[int, int], list[_Run]]] = defaultdict(lambda: defaultdict(list))
    for text, run in runs:
        by_text[text][run.place].append(run)
    return [
        (text, run)
        for text, by_place in by_text.items()
        for place in sorted(by_place, key=lambda p: (-sum(r.length for r in by_place[p]), p))[
            :_MOST
        ]
        for run in by_place[place]
    ]


def _hashes(ids: Ints) -> npt.NDArray[np.uint64]:
    """A hash of each window of `RUN` ids, [N - RUN + 1]: a polynomial modulo 2^64."""
    count = max(len(ids) - RUN + 1, 0)
    values = ids.astype(np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(RUN):
        hashes *= _ODD
        hashes += values[place : place + count]
    return hashes
