"""The second step, one task: which articles are used, and on which side of the split each stands.

It sees ids, hashes, dates and signatures of all articles at once, no texts. Names end in their
shape: R rows of all scanned portions, one behind the other; A articles among them.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import near
from data_prep.articles import Reject, is_malformed, nothing_good
from data_prep.dedupe import (
    HELD_OUT,
    NEITHER,
    TRAIN,
    Indices,
    Sides,
    copies,
    divide_by_date,
    divide_by_share,
    within,
)
from pressroom.console import UserError
from pressroom.dataset import SPLITS
from pressroom.sections import Data

SCHEMA = pa.schema([("side", pa.int8()), ("cause", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class PackUnit:
    """What becomes one shard: the articles of a split among rows `start` to `stop`."""

    side: int
    start: int
    stop: int


def decide(scanned: pa.Table, data: Data) -> pa.Table:
    """Choose among all articles.

    Args:
        scanned: Rows of `scan.SCHEMA`, whose texts are not looked at.
        data: What the recipe says.

    Returns:
        For each row its side of the split, or NEITHER and why: `SCHEMA`.
    """
    verdicts = _Verdicts(scanned)
    verdicts.drop_copies()
    stories_A = verdicts.drop_near_copies(data)
    verdicts.divide(stories_A, data)
    verdicts.keep_fraction(data.fraction)
    return verdicts.table()


class _Verdicts:
    """What becomes of each row; what is rejected stays so."""

    def __init__(self, scanned: pa.Table) -> None:
        self._scanned = scanned
        self._cause_R: list[str | None] = scanned["cause"].to_pylist()
        self._detail_R: list[str | None] = scanned["detail"].to_pylist()
        self._side_R: Sides = np.full(len(scanned), NEITHER, np.int8)

    def _kept(self) -> Indices:
        """The rows that are not rejected, [A]."""
        kept: Indices = np.flatnonzero([cause is None for cause in self._cause_R])
        return kept

    def _column(self, name: str, kept_A: Indices) -> pa.ChunkedArray:
        return self._scanned[name].take(pa.array(kept_A))

    def _place(self, row: int) -> str:
        return str(self._scanned["place"][int(row)])

    def _reject(self, row: int, cause: str, detail: str) -> None:
        self._cause_R[row], self._detail_R[row] = cause, detail

    def drop_copies(self) -> None:
        """Reject articles of an earlier one's id or text."""
        kept_A = self._kept()
        columns = [self._column(name, kept_A) for name in ("id", "text_hash")]
        codes = [c.combine_chunks().dictionary_encode().indices.to_pylist() for c in columns]
        causes = ("duplicate url", "duplicate text")
        for cause, first_A in zip(causes, copies(*codes), strict=True):
            for index in np.flatnonzero(first_A >= 0):
                place = self._place(kept_A[first_A[index]])
                self._reject(kept_A[index], cause, f"first at {place}")

    def drop_near_copies(self, data: Data) -> Indices:
        """Reject what is nearly an earlier article.

        Returns:
            Of each article that is left the index, among them, of the first one of its story.
        """
        kept_A = self._kept()
        if data.near_duplicate is None and data.same_story is None:
            return np.arange(len(kept_A))
        signatures = self._column("signature", kept_A).combine_chunks()
        signatures_AH = signatures.flatten().to_numpy().reshape(len(kept_A), near.NUM_HASHES)
        found = near.compare(signatures_AH, data.near_duplicate, data.same_story)
        dropped_A = found.first_A >= 0
        for index in np.flatnonzero(dropped_A):
            place = self._place(kept_A[found.first_A[index]])
            self._reject(
                kept_A[index], "near duplicate", f"{found.likeness_A[index]:.0%} of {place}"
            )
        # A story's first article is kept: only kept ones are compared with.
        number_A = np.cumsum(~dropped_A) - 1
        stories: Indices = number_A[found.story_A[~dropped_A]]
        return stories

    def divide(self, story_A: Indices, data: Data) -> None:
        """Give each article its side."""
        kept_A = self._kept()
        if isinstance(data.held_out, float):
            ids_A = self._column("id", kept_A).to_pylist()
            self._side_R[kept_A] = divide_by_share(ids_A, story_A, data.held_out)
            return
        published_A = self._column("published_at", kept_A).to_pylist()
        side_A, dated_A = divide_by_date(published_A, story_A, data.held_out)
        self._side_R[kept_A] = side_A
        old = np.flatnonzero(side_A == TRAIN)[::-1]
        began = dict(zip(story_A[old].tolist(), kept_A[old].tolist(), strict=True))
        for index in np.flatnonzero(side_A == NEITHER):
            if dated_A[index]:
                place = self._place(began[int(story_A[index])])
                self._reject(kept_A[index], "its story began before held_out", f"as {place}")
            else:
                day = f"{published_A[index]!r:.60} does not begin with YYYY-MM-DD"
                self._reject(kept_A[index], "no date of publication", day)

    def keep_fraction(self, fraction: float) -> None:
        """Reject articles to train on beyond a share of them, when all else is decided."""
        rows_A = np.flatnonzero(self._side_R == TRAIN)
        ids_A = self._column("id", rows_A).to_pylist() if fraction < 1 else []
        used_A = within(ids_A, fraction)
        for row in rows_A[~used_A] if fraction < 1 else ():
            self._side_R[row] = NEITHER
            self._reject(row, "beyond data.fraction", f"{fraction:g} of the articles are used")

    def table(self) -> pa.Table:
        """The verdicts, as `SCHEMA`."""
        return pa.table([self._side_R, self._cause_R, self._detail_R], schema=SCHEMA)


def require_good_files(names: list[str], tables: list[pa.Table]) -> None:
    """See that a file with records has one that is an article, wanted or not.

    Args:
        names: The file of each scanned portion.
        tables: Its rows.

    Raises:
        UserError: Naming each file that has none, and its first reject.
    """
    good = dict.fromkeys(names, False)
    first: dict[str, Reject] = {}
    for name, table in zip(names, tables, strict=True):
        causes = pc.unique(table["cause"]).to_pylist()
        good[name] |= any(cause is None or not is_malformed(cause) for cause in causes)
        if len(table) and name not in first:
            row = table.select(["place", "cause", "detail"]).slice(0, 1).to_pylist()[0]
            first[name] = Reject(**row)
    bad = [nothing_good(reject) for name, reject in first.items() if not good[name]]
    if bad:
        raise UserError("\n".join(bad))


def require_splits(records: pa.Table, verdicts: pa.Table) -> None:
    """See that each split has an article.

    Raises:
        UserError: One has none; says what was rejected, with an example.
    """
    counts = [pc.sum(pc.equal(verdicts["side"], side)).as_py() or 0 for side in range(len(SPLITS))]
    empty = [split for split, count in zip(SPLITS, counts, strict=True) if not count]
    if not empty:
        return
    causes = Counter(cause for cause in verdicts["cause"].to_pylist() if cause).most_common()
    told = ", ".join(f"{count:,} {cause}" for cause, count in causes)
    if causes:
        row = pc.index(verdicts["cause"], causes[0][0]).as_py()
        told += f"; as {records['place'][row]}: {verdicts['detail'][row].as_py() or causes[0][0]}"
    rejected = f"; rejected: {told}" if told else ""
    raise UserError(
        f"data: not one article is left for the {empty[0]} split: of {len(verdicts):,} "
        f"{counts[TRAIN]:,} to train on, {counts[HELD_OUT]:,} held out by data.held_out{rejected}"
    )


def pack_units(side_R: Sides, sizes_R: Indices, unit_bytes: int) -> list[PackUnit]:
    """Cut each split into runs of articles of about so many bytes of text.

    Where a unit ends depends on what stands before it alone.
    """
    units = []
    for side in range(len(SPLITS)):
        rows_A = np.flatnonzero(side_R == side)
        before_A = np.cumsum(sizes_R[rows_A]) - sizes_R[rows_A]
        _, firsts = np.unique(before_A // unit_bytes, return_index=True)
        units += [
            PackUnit(side, int(rows_A[start]), int(rows_A[stop - 1]) + 1)
            for start, stop in pairwise([*firsts, len(rows_A)])
        ]
    return units


def text_sizes(scanned: pa.Table) -> npt.NDArray[np.int64]:
    """Bytes of each row's text, [R]; 0 for a reject."""
    length = pc.add(pc.binary_length(scanned["title"]), pc.binary_length(scanned["description"]))
    sizes: npt.NDArray[np.int64] = pc.fill_null(length, 0).to_numpy().astype(np.int64)
    return sizes
