"""Runs of tokens that texts and descriptions of articles have in common, found in one pass.

The texts' windows of `RUN` tokens are hashed, and the training rows pass by once, hashed the same
way. Every match is then compared token by token. Knows nothing of articles.

W windows of all texts, N tokens of a batch, P its pieces, M matches of windows, R runs.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pressroom.ragged import ranges
from pressroom.rows import SCHEMA, Pieces, batches

RUN = 11
"""Tokens that count as shared when they follow each other in both. "Longer than 10 tokens" is what
Llama 2's authors call contamination: Touvron et al. 2023, appendix A.6."""
MOST = 8
"""Pieces of a shard that are remembered of a text."""
_REPEATS = 16
"""Places with the same window that are looked at: all of a text of dashes would be no copy."""
_MATCHES = 2**18
"""That are looked at together, or those of one piece."""
_SPREAD = np.arange(RUN)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SIEVE_BITS = np.uint64(22)

Ints = npt.NDArray[Any]
Span = tuple[int, int]
"""Start and end of a run, in its text."""
Found = dict[int, dict[tuple[int, int], list[Span]]]
"""Text -> row of the shard and which of its pieces -> runs."""


class Windows:
    """All runs of `RUN` tokens of some texts, by their hashes.

    Args:
        texts: Token ids of each.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._ids = np.fromiter((i for text in texts for i in text), np.int64, self._lengths.sum())
        at_W = ranges(self._starts, np.maximum(self._lengths - RUN + 1, 0))
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

    def runs_in(self, shard: Path) -> Found:
        """The runs of a shard; of a text those of the pieces that have most of it."""
        found: Found = defaultdict(lambda: defaultdict(list))
        row = 0
        for batch in batches(shard, SCHEMA) if len(self._hashes) else ():
            pieces = Pieces.of(batch)
            for at_M, position_M, piece_M in self._matches(pieces):
                self._covered[(at_M[:, None] + _SPREAD).ravel()] = True
                for text, place, span in self._runs(pieces, at_M, position_M, piece_M, row):
                    found[text][place].append(span)
            _keep_most(found)
            row += len(batch)
        return found

    def _matches(self, pieces: Pieces) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Windows of the texts that stand in descriptions: where in both, and in which piece.

        Yields:
            Those of some pieces, in order: a text and an article that say one thing again and
            again have a match for every pair.
        """
        hashes_N = _hashes(pieces.ids_N)
        maybe = np.flatnonzero(self._sieve[hashes_N >> (np.uint64(64) - _SIEVE_BITS)])
        window = np.searchsorted(self._hashes, hashes_N[maybe])
        window[window == len(self._hashes)] = 0
        same = self._hashes[window] == hashes_N[maybe]
        position, window = maybe[same], window[same]
        piece = np.searchsorted(pieces.ends_P, position, side="right")
        begins = pieces.starts_P[piece] + pieces.prompts_P[piece]
        inside = (position >= begins) & (position + RUN <= pieces.ends_P[piece])
        position, window, piece = position[inside], window[inside], piece[inside]
        times = np.minimum(self._count[window], _REPEATS)  # a text may say the same twice
        before = np.cumsum(times) - times
        new = np.flatnonzero(np.diff(piece, prepend=-1))
        portion = np.repeat(before[new] // _MATCHES, np.diff(np.append(new, len(piece))))
        for part in np.split(np.arange(len(piece)), np.flatnonzero(np.diff(portion)) + 1):
            at_M = self._at[ranges(self._first[window[part]], times[part])]
            position_M = np.repeat(position[part], times[part])
            texts_MR = self._ids[at_M[:, None] + _SPREAD]
            good = (texts_MR == pieces.ids_N[position_M[:, None] + _SPREAD]).all(axis=1)
            if good.any():
                yield at_M[good], position_M[good], np.repeat(piece[part], times[part])[good]

    def _runs(
        self, pieces: Pieces, at_M: Ints, position_M: Ints, piece_M: Ints, first_row: int
    ) -> Iterator[tuple[int, tuple[int, int], Span]]:
        """Matches that follow each other in text and piece, as one run.

        Yields:
            Text; row of the shard and which of its pieces; start and end in the text.
        """
        text_M = np.searchsorted(self._starts, at_M, side="right") - 1
        order = np.lexsort((at_M, position_M - at_M, piece_M, text_M))
        at, position = at_M[order], position_M[order]
        # No window reaches into another text or piece, so whoever does not has a gap there.
        new = np.ones(len(at), dtype=bool)
        new[1:] = (np.diff(at) != 1) | (np.diff(position) != 1)
        begins_R = np.flatnonzero(new)
        lengths_R = np.diff(np.append(begins_R, len(at))) + RUN - 1
        text_R, piece_R = text_M[order][begins_R], piece_M[order][begins_R]
        firsts = np.cumsum(pieces.pieces_R) - pieces.pieces_R
        row_R = np.searchsorted(firsts, piece_R, side="right") - 1
        start_R = at[begins_R] - self._starts[text_R]
        columns = (text_R, row_R + first_row, piece_R - firsts[row_R], start_R, lengths_R)
        for text, row, which, start, length in zip(*map(np.ndarray.tolist, columns), strict=True):
            yield text, (row, which), (start, start + length)


def covered(spans: Sequence[Span]) -> int:
    """Tokens in some spans."""
    total, behind = 0, 0
    for start, end in sorted(spans):
        total += max(end - max(start, behind), 0)
        behind = max(behind, end)
    return total


def _keep_most(found: Found) -> None:
    """Of each text keep the runs of the pieces that have most of it, and of its longest run."""
    for by_place in found.values():
        if len(by_place) > MOST:
            longest = {p: max(end - start for start, end in by_place[p]) for p in by_place}
            rank = sorted(by_place, key=lambda p: (-covered(by_place[p]), -longest[p], p))
            kept = {*rank[:MOST], max(rank, key=lambda p: longest[p])}
            for place in by_place.keys() - kept:
                del by_place[place]


def _hashes(ids: Ints) -> npt.NDArray[np.uint64]:
    """A hash of each window of `RUN` ids, [N - RUN + 1]: a polynomial modulo 2^64."""
    count = max(len(ids) - RUN + 1, 0)
    values = ids.astype(np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(RUN):
        hashes *= _ODD
        hashes += values[place : place + count]
    return hashes
