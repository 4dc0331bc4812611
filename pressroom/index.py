"""Which article is where in a dataset: index.arrow.

A line an article: its id, its place (`file:line`), its shard, its rows there, and of each of those
which of the row's pieces it is. Memory-mapped and looked at by columns, for there are millions.
Knows nothing of tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pressroom.dataset import INDEX
from pressroom.rows import batches

_NAMES, _PLACES = ("id", "place", "shard"), ("rows", "pieces")
SCHEMA = pa.schema(
    [*((n, pa.string()) for n in _NAMES), *((n, pa.list_(pa.int32())) for n in _PLACES)]
)


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


def on_rows(index: pa.Table, shard: str) -> dict[tuple[int, int], tuple[str, int]]:
    """Of one shard, (row, which of its pieces) -> the article that it is of, and which of its."""
    lines = index.filter(pc.equal(index["shard"], shard)).to_pylist()
    return {
        place: (line["id"], number)
        for line in lines
        for number, place in enumerate(zip(line["rows"], line["pieces"], strict=True))
    }
