"""All rows of a dataset, counted and held against `data_prep/checks.py`.

What others get silently wrong is found here before any GPU is: a doubled BOS, an eos that is
never learnt, an empty loss mask, one article running into another. Of the rows a few numbers
each are kept, no tokens. Knows nothing of text.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.checks import OF_PIECES, Promise, ends
from pressroom.console import Progress, UserError
from pressroom.dataset import IGNORE, SPLITS, Manifest, Shard
from pressroom.rows import SCHEMA, Ints, Mask, Pieces, batches, flat, sound
from pressroom.tokenizer import ArticleTokenizer

_AGREE = "ids, labels and lengths of a row agree"
_FITS = "no row is longer than sequence_length"
_BEGINS = "every article begins with BOS, or with the last token of a piece that goes on"
_COUNTS = "rows, tokens, trained tokens and articles are as many as the manifest says"

Place = tuple[int, ...]
"""A row of its split and, where it is one piece's, the piece's number in the row."""


@dataclass(frozen=True)
class Split:
    """Figures of one split: R rows, P pieces."""

    tokens_R: Ints
    pieces_R: Ints
    lengths_P: Ints
    trained_tokens: int
    articles: int


@dataclass
class Verdict:
    """Whether a claim holds for the whole dataset."""

    claim: str
    faults: int = 0
    first: str = ""
    """Where the first fault is."""

    def note(self, times: int, place: str) -> None:
        """Count faults, the first of them at a place."""
        self.first = self.first or place
        self.faults += times


def audit(
    folder: Path, manifest: Manifest, tokenizer: ArticleTokenizer
) -> tuple[dict[str, Split], list[Verdict]]:
    """Look at every row of a dataset.

    Of a damaged shard what can be read is looked at; what is missing is told with the counts.

    Returns:
        The figures of each split, and what was checked.
    """
    verdicts = {claim: Verdict(claim) for claim in (_AGREE, _FITS, _BEGINS, *OF_PIECES, _COUNTS)}
    splits = {}
    with Progress("check", sum(map(manifest.rows, SPLITS)), "row") as progress:
        for name in SPLITS:
            reader = _Reader(name, Promise.of(manifest, tokenizer), verdicts)
            for shard in (s for s in manifest.shards if s.split == name):
                reader.read_shard(shard, folder / shard.file, progress)
            reader.match_pieces()
            splits[name] = reader.figures()
            if splits[name].articles != manifest.counts[name]:
                has = f"{name} has {splits[name].articles:,} articles"
                verdicts[_COUNTS].note(1, f"{has}, the manifest {manifest.counts[name]:,}")
    return splits, list(verdicts.values())


class _Reader:
    """Goes through one split, batch by batch, and notes what is wrong."""

    def __init__(self, name: str, promise: Promise, verdicts: dict[str, Verdict]) -> None:
        self._name, self._promise, self._verdicts = name, promise, verdicts
        empty: Ints = np.array([], dtype=np.int32)
        self._tokens_R, self._pieces_R, self._lengths_P = [empty], [empty], [empty]
        self._rows = self._trained = self._articles = 0
        self._shards: list[tuple[int, str]] = []  # the split's row that is its first
        # By the token that they share: pieces without BOS, pieces without eos.
        self._continued: dict[int, list[Place]] = defaultdict(list)
        self._going_on: dict[int, list[Place]] = defaultdict(list)

    def read_shard(self, shard: Shard, path: Path, progress: Progress) -> None:
        """Look at a shard's rows, and hold their number against the manifest."""
        self._shards.append((self._rows, shard.file))
        first, tokens, trained, end = self._rows, 0, self._trained, ""
        try:
            for rows in batches(path, SCHEMA):
                tokens += self._read_rows(rows)
                progress.advance(len(rows))
        except UserError as error:
            end = f", and then: {error}"
        counted = (self._rows - first, tokens, self._trained - trained)
        if end or counted != (shard.rows, shard.tokens, shard.trained_tokens):
            has = "{:,} rows, {:,} tokens, {:,} of them trained on".format(*counted)
            self._verdicts[_COUNTS].note(1, f"{shard.file} has {has}{end}")
        self._rows = max(self._rows, first + shard.rows)  # rows behind a cut keep their numbers

    def _read_rows(self, rows: pa.RecordBatch) -> int:
        """Look at some rows; how many tokens they have."""
        tokens_R = flat(rows, "input_ids")[1]
        self._trained += int((flat(rows, "labels")[0] != IGNORE).sum())
        self._tokens_R.append(tokens_R)
        sound_R = sound(rows)
        for claim, wrong_R in (
            (_AGREE, ~sound_R),
            (_FITS, tokens_R > self._promise.sequence_length),
        ):
            self._note(claim, [(self._rows + row,) for row in np.flatnonzero(wrong_R).tolist()])
        if sound_R.any():
            self._read_pieces(rows, np.flatnonzero(sound_R))
        self._rows += len(rows)
        return int(tokens_R.sum())

    def _read_pieces(self, rows: pa.RecordBatch, sound_rows: Ints) -> None:
        pieces = Pieces.of(rows if len(sound_rows) == len(rows) else rows.take(sound_rows))

        def places(mask_P: Mask) -> list[Place]:
            return [(self._rows + int(sound_rows[r]), a) for r, a in pieces.places(mask_P)]

        for claim, is_false in OF_PIECES.items():
            self._note(claim, places(is_false(pieces, self._promise)))
        bos_P = pieces.first_ids_P == self._promise.bos_id
        eos_P = ends(pieces, self._promise)
        for place, token in zip(places(~bos_P), pieces.first_ids_P[~bos_P], strict=True):
            self._continued[int(token)].append(place)
        for place, token in zip(places(~eos_P), pieces.last_ids_P[~eos_P], strict=True):
            self._going_on[int(token)].append(place)
        self._articles += int(bos_P.sum())
        self._pieces_R.append(pieces.pieces_R)
        self._lengths_P.append(pieces.lengths_P)

    def match_pieces(self) -> None:
        """Each piece without BOS goes with one without eos, by the token that they share.

        Which of several with the same token has no partner cannot be told: the last are named.
        """
        alone: list[Place] = []
        for token in self._continued.keys() | self._going_on.keys():
            few, many = sorted((self._continued[token], self._going_on[token]), key=len)
            alone += many[len(few) :]
        self._note(_BEGINS, sorted(alone))

    def _note(self, claim: str, places: list[Place]) -> None:
        if places:
            row, *article = places[0]
            first, file = max(shard for shard in self._shards if shard[0] <= row)
            where = f"{self._name} row {row}" + "".join(f", article {a + 1}" for a in article)
            self._verdicts[claim].note(len(places), f"{where} ({file}, its row {row - first})")

    def figures(self) -> Split:
        """What the rows that were read amount to."""
        return Split(
            np.concatenate(self._tokens_R),
            np.concatenate(self._pieces_R),
            np.concatenate(self._lengths_P),
            self._trained,
            self._articles,
        )
