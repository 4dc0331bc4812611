"""The index of a dataset held against the manifest and the shards. Knows nothing of tokens."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.audit import Verdict
from pressroom.console import UserError
from pressroom.dataset import SPLITS, Manifest
from pressroom.index import read_index
from pressroom.rows import SCHEMA, Ints, batches, flat

_ONCE = "the index names every article once, as many as the manifest says"
_FITS = "the rows that it names are there, and every piece on them is one article's"
_UNREAD = -1


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
    """The pieces that the index names, beside those that are there.

    Names end in their shape: A articles, P their pieces, R rows of all shards, S shards, Q pieces
    of all rows that could be read.
    """
    files = [shard.file for shard in manifest.shards]
    rows_S = np.array([shard.rows for shard in manifest.shards], dtype=np.int64)
    start_S = np.cumsum(rows_S) - rows_S
    found_R = np.concatenate([_pieces(folder / s.file, s.rows) for s in manifest.shards])
    read_R = np.maximum(found_R, 0)  # where they are unread, none
    start_R = np.cumsum(read_R) - read_R
    named_Q = np.zeros(read_R.sum(), dtype=np.int64)
    for part in index.to_batches():
        codes = pc.index_in(part["shard"], value_set=pa.array(files, pa.string()))
        shard_A = pc.fill_null(codes, _UNREAD).to_numpy()
        (rows_P, counts_A), (piece_P, pieces_A) = flat(part, "rows"), flat(part, "pieces")
        wrong_A = (counts_A == 0) | (counts_A != pieces_A)  # on no row: as wrong as on none there
        if (counts_A == pieces_A).all():
            shard_P = np.repeat(shard_A, counts_A)
            there_P = (shard_P >= 0) & (rows_P >= 0) & (rows_P < rows_S[shard_P])
            row_P = np.where(there_P, start_S[shard_P] + rows_P, 0)
            unread_P = found_R[row_P] == _UNREAD
            there_P &= unread_P | ((piece_P >= 0) & (piece_P < found_R[row_P]))
            at = (start_R[row_P] + piece_P)[there_P & ~unread_P]
            named_Q += np.bincount(at, minlength=len(named_Q))
            wrong_A[np.repeat(np.arange(len(part)), counts_A)[~there_P]] = True
        if wrong_A.any():
            line = part.slice(int(wrong_A.argmax()), 1).to_pylist()[0]
            says = "{id} on rows {rows} of {shard}, as pieces {pieces}".format(**line)
            verdict.note(int(wrong_A.sum()), says)
    different = np.flatnonzero(named_Q != 1)
    if len(different):
        piece = int(different[0])
        row = int(np.searchsorted(start_R, piece, side="right")) - 1
        shard = int(np.searchsorted(start_S, row, side="right")) - 1
        where = f"{files[shard]}, its row {row - start_S[shard]}, piece {piece - start_R[row]}"
        verdict.note(len(different), f"{where}: {named_Q[piece]} articles in the index")


def _pieces(path: Path, rows: int) -> Ints:
    """The number of pieces of each row of a shard, [rows]; of those that are unread, `_UNREAD`."""
    found: Ints = np.full(rows, _UNREAD, dtype=np.int64)
    start = 0
    try:
        for batch in batches(path, SCHEMA):
            pieces_R = flat(batch, "seq_lengths")[1][: rows - start]
            found[start : start + len(pieces_R)] = pieces_R
            start += len(pieces_R)
    except UserError:
        pass  # told by who looks at the rows
    return found
