"""Packed rows as flat numpy arrays, so that a whole dataset is looked at by columns.

A row has `input_ids`, `labels` (-100 where no loss), `seq_lengths` (tokens of each article's
piece) and `prompt_lengths` (how many of those come before the description); all int32.

Shards are memory-mapped and read a batch of rows at a time. Names end in their shape: N tokens,
P pieces (an article, or one part of an article that was split), R rows of the batch. Knows
nothing of what is right or wrong in a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pressroom.console import UserError
from pressroom.dataset import IGNORE

COLUMNS = ("input_ids", "labels", "seq_lengths", "prompt_lengths")
SCHEMA = pa.schema([(name, pa.list_(pa.int32())) for name in COLUMNS])

Ints = npt.NDArray[Any]  # int32 of a column, or int64 of a sum
Mask = npt.NDArray[np.bool_]


def batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of an Arrow stream, memory-mapped, batch by batch; also of a damaged file.

    Each is validated: an offset that points outside would end the process, not the reading.

    Raises:
        UserError: It is no stream of such rows, or none up to its end. One that is cut between two
            batches ends without a word.
    """
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            if not stream.schema.equals(schema):
                found = ", ".join(f"{field.name} ({field.type})" for field in stream.schema)
                raise UserError(f"{path}: its columns are {found}")
            for batch in stream:
                batch.validate(full=True)
                if any(map(_nulls, batch.columns)):
                    raise UserError(f"{path}: holds nulls")
                yield batch
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not an Arrow stream: {reason}") from None


def _nulls(column: pa.Array) -> int:
    values = column.flatten() if pa.types.is_list(column.type) else column
    return int(column.null_count + values.null_count)


def open_shard(path: Path) -> pa.Table:
    """The rows of a shard, memory-mapped.

    Raises:
        UserError: It is no Arrow stream of packed rows.
    """
    return pa.Table.from_batches(list(batches(path, SCHEMA)), SCHEMA)


def flat(rows: pa.RecordBatch, name: str) -> tuple[Ints, Ints]:
    """A column's values [sum of counts], and how many each row has [R]."""
    column = rows.column(name)
    return column.flatten().to_numpy(), np.diff(column.offsets.to_numpy())


def sound(rows: pa.RecordBatch) -> Mask:
    """For each row whether its columns speak of the same tokens and the same pieces, [R]."""
    (_, ids_R), (_, labels_R) = flat(rows, "input_ids"), flat(rows, "labels")
    (lengths_P, pieces_R), (_, prompts_R) = flat(rows, "seq_lengths"), flat(rows, "prompt_lengths")
    agree = (labels_R == ids_R) & (prompts_R == pieces_R) & (ids_R > 0)
    adds_up = sums_by_row(lengths_P, pieces_R) == ids_R
    none_empty = sums_by_row(lengths_P < 1, pieces_R) == 0
    good: Mask = agree & adds_up & none_empty
    return good


def sums_by_row(values: Ints | Mask, counts_R: Ints) -> Ints:
    """The sum of each row's values, [R]; a row may have none."""
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(counts_R)
    sums: Ints = before[ends] - before[ends - counts_R]
    return sums


@dataclass(frozen=True)
class Pieces:
    """The pieces of some sound rows: what stands in one, one behind the other."""

    ids_N: Ints
    labels_N: Ints
    lengths_P: Ints
    prompts_P: Ints
    pieces_R: Ints

    @classmethod
    def of(cls, rows: pa.RecordBatch) -> "Pieces":
        """Rows, all of them sound, as flat arrays."""
        lengths_P, pieces_R = flat(rows, "seq_lengths")
        ids_N, labels_N = flat(rows, "input_ids")[0], flat(rows, "labels")[0]
        return cls(ids_N, labels_N, lengths_P, flat(rows, "prompt_lengths")[0], pieces_R)

    @cached_property
    def ends_P(self) -> Ints:
        """Behind the last token of each piece."""
        return np.cumsum(self.lengths_P, dtype=np.int64)

    @cached_property
    def starts_P(self) -> Ints:
        """The first token of each piece."""
        return self.ends_P - self.lengths_P

    @property
    def first_ids_P(self) -> Ints:
        """Each piece's first token."""
        ids: Ints = self.ids_N[self.starts_P]
        return ids

    @property
    def last_ids_P(self) -> Ints:
        """Each piece's last token."""
        ids: Ints = self.ids_N[self.ends_P - 1]
        return ids

    @cached_property
    def trained_N(self) -> Mask:
        """Tokens that carry loss."""
        trained: Mask = self.labels_N != IGNORE
        return trained

    def any(self, mask_N: Mask) -> Mask:
        """Whether a mask takes a token of the piece, [P]."""
        taken: Mask = np.logical_or.reduceat(mask_N, self.starts_P)
        return taken

    def places(self, mask_P: Mask) -> list[tuple[int, int]]:
        """Row in the batch, and which of the row's pieces, of each piece that a mask takes."""
        firsts_R = np.cumsum(self.pieces_R) - self.pieces_R
        rows = np.searchsorted(firsts_R, chosen := np.flatnonzero(mask_P), side="right") - 1
        return list(zip(rows.tolist(), (chosen - firsts_R[rows]).tolist(), strict=True))
