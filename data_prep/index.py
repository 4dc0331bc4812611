"""Which article is where in a dataset: index.arrow, read, and held against the shards.

A line an article: its id, its place (`file:line`), its shard and its rows there. Memory-mapped and
looked at by columns, for there are millions. Knows nothing of tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.audit import Verdict
from data_prep.columns import Ints, batches, flat
from data_prep.shards import SCHEMA as ROWS
from pressroom.console import UserError
from pressroom.dataset import INDEX, SPLITS, Manifest

SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("id", "place", "shard")), ("rows", pa.list_(pa.int32()))]
)
_ONCE = "the index names every article once, as many as the manifest says"
_FITS = "the rows that it names are there, and hold as many articles as it says"
_UNREAD = -1


def read_index(folder: Path) -> pa.Table:
    """The index of a dataset, memory-mapped.

    Raises:
        UserError: It is missing or damaged.
    """
    return pa.Table.from_batches(list(batches(folder / INDEX, SCHEMA)), SCHEMA)


def find(index: pa.Table, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of some articles."""
    lines: list[dict[str, Any]] = index.filter(
        pc.is_in(index["id"], value_set=pa.array(ids, pa.string()))
    ).to_pylist()
    return lines


def check_index(folder: Path, manifest: Manifest) -> list[Verdict]:
    """Hold the index against manifest and shards; rows that cannot be read are not compared."""
    once, fits = Verdict(_ONCE), Verdict(_FITS)
    try:
        index = read_index(folder)
    except UserError as error:
        once.note(1, str(error))
        return [once]
    _count(index, manifest, once)
    _compare(index, folder, manifest, fits)
    return [once, fits]


def _count(index: pa.Table, manifest: Manifest, verdict: Verdict) -> None:
    """Each id once, and each split's number."""
    times = pc.value_counts(index["id"])
    doubled = times.filter(pc.greater(times.field("counts"), 1))
    if len(doubled):
        verdict.note(len(doubled), f"{doubled[0]['values']} stands {doubled[0]['counts']} times")
    for split in SPLITS:
        number = pc.sum(pc.starts_with(index["shard"], f"{split}/")).as_py() or 0
        if number != manifest.counts[split]:
            has = f"{number:,} articles of {split}, the manifest {manifest.counts[split]:,}"
            verdict.note(1, has)


def _compare(index: pa.Table, folder: Path, manifest: Manifest, verdict: Verdict) -> None:
    """The pieces that the index puts on each row of all shards, beside those that are there.

    Names end in their shape: A articles, P their pieces, R rows of all shards, S shards.
    """
    files = [shard.file for shard in manifest.shards]
    rows_S = np.array([shard.rows for shard in manifest.shards], dtype=np.int64)
    first_S = np.cumsum(rows_S) - rows_S
    named_R = np.zeros(rows_S.sum(), dtype=np.int64)
    for part in index.to_batches():
        codes = pc.index_in(part["shard"], value_set=pa.array(files, pa.string()))
        shard_A = pc.fill_null(codes, -1).to_numpy()
        rows_P, pieces_A = flat(part, "rows")
        shard_P = np.repeat(shard_A, pieces_A)
        there_P = (shard_P >= 0) & (rows_P >= 0) & (rows_P < rows_S[shard_P])
        named_R += np.bincount(first_S[shard_P[there_P]] + rows_P[there_P], minlength=len(named_R))
        # An article on no row is as wrong as one on a row that is not there.
        wrong_A = pieces_A == 0
        wrong_A[np.repeat(np.arange(len(part)), pieces_A)[~there_P]] = True
        if wrong_A.any():
            line = part.slice(int(wrong_A.argmax()), 1).to_pylist()[0]
            verdict.note(int(wrong_A.sum()), "{id} on rows {rows} of {shard}".format(**line))
    found_R = np.concatenate([_pieces(folder / s.file, s.rows) for s in manifest.shards])
    different = np.flatnonzero((found_R != _UNREAD) & (found_R != named_R))
    if len(different):
        row = int(different[0])
        shard = int(np.searchsorted(first_S, row, side="right")) - 1
        where = f"{files[shard]}, its row {row - first_S[shard]}"
        says = f"{where}, has {found_R[row]} articles, the index {named_R[row]}"
        verdict.note(len(different), says)


def _pieces(path: Path, rows: int) -> Ints:
    """The number of pieces of each row of a shard, [rows]; of those that are unread, `_UNREAD`."""
    found: Ints = np.full(rows, _UNREAD, dtype=np.int64)
    start = 0
    try:
        for batch in batches(path, ROWS):
            pieces_R = flat(batch, "seq_lengths")[1][: rows - start]
            found[start : start + len(pieces_R)] = pieces_R
            start += len(pieces_R)
    except UserError:
        pass  # told by who looks at the rows
    return found
