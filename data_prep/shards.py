"""Articles -> an Arrow shard of packed rows that `datasets.load_from_disk` and pyarrow open.

Their columns are those of `pressroom/rows.py`. The same articles give the same
bytes. Knows nothing of other shards, and of a dataset only the two small
files by which `datasets` knows it.

P pieces, R rows; pieces stand in the rows' order where they are written.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.articles import Reject
from data_prep.packing import pack
from data_prep.tokens import Ids, Integers, Pieces, tokenize
from pressroom.dataset import IGNORE, SPLITS
from pressroom.files import sha256_file
from pressroom.ragged import ranges
from pressroom.recipe import Recipe
from pressroom.rows import SCHEMA
from pressroom.tokenizer import ArticleTokenizer

_BATCH_TOKENS = 2**20


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is in a shard, and what is not."""

    rows: int
    tokens: int
    trained_tokens: int
    sha256: str
    rejects: list[Reject]
    index: pa.Table
    """Of each good article, in order: `id`, `place`, the `rows` in which its pieces stand, and
    `pieces`: which of a row's they are."""


def write_shard(
    path: Path, articles: pa.Table, recipe: Recipe, tokenizer: ArticleTokenizer
) -> Written:
    """Tokenize, mask and pack articles, and write their rows as an Arrow stream.

    What is in memory follows from the articles given: about their text once as ids, and a batch
    of rows.

    Args:
        path: The file; whoever calls makes it visible when it is whole.
        articles: With text columns id, title, description, place.
        recipe: Its prompt, its sequence length, and what to do with what is longer.
        tokenizer: The model's.
    """
    pieces, rejects = tokenize(articles, recipe, tokenizer)
    rows = pack(pieces.lengths, recipe.sequence_length)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for batch in _record_batches(pieces, rows, max(1, _BATCH_TOKENS // recipe.sequence_length)):
            writer.write_batch(batch)
    tokens = int(pieces.lengths.sum())
    return Written(
        rows=len(rows),
        tokens=tokens,
        trained_tokens=tokens - int(pieces.masked.sum()),
        sha256=sha256_file(path),
        rejects=rejects,
        index=_index(articles, pieces, rows),
    )


def _record_batches(
    pieces: Pieces, rows: Sequence[Sequence[int]], most_rows: int
) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), most_rows):
        batch = rows[start : start + most_rows]
        counts_R = np.fromiter(map(len, batch), np.int64, len(batch))
        chosen_P = np.fromiter(chain.from_iterable(batch), np.int64, counts_R.sum())
        lengths_P = pieces.lengths[chosen_P]
        ids = pieces.ids[ranges(pieces.starts[chosen_P], lengths_P)]
        labels = ids.copy()
        labels[ranges(np.cumsum(lengths_P) - lengths_P, pieces.masked[chosen_P])] = IGNORE
        last_R = np.cumsum(counts_R) - 1
        tokens_R = np.diff(np.cumsum(lengths_P)[last_R], prepend=0)
        columns = [
            _lists(ids, tokens_R),
            _lists(labels, tokens_R),
            _lists(lengths_P, counts_R),
            _lists(pieces.prompt_lengths[chosen_P], counts_R),
        ]
        yield pa.record_batch(columns, schema=SCHEMA)


def _lists(values: Ids | Integers, lengths: Integers) -> pa.ListArray:
    """Values divided into lists of some lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values.astype(np.int32, copy=False))
    )


def _index(articles: pa.Table, pieces: Pieces, rows: Sequence[Sequence[int]]) -> pa.Table:
    """Which article stands in which rows, and where in each."""
    row_P, place_P = np.empty((2, len(pieces.lengths)), np.int64)
    in_rows = np.fromiter(chain.from_iterable(rows), np.int64, len(row_P))
    counts_R = np.fromiter(map(len, rows), np.int64, len(rows))
    row_P[in_rows] = np.repeat(np.arange(len(rows)), counts_R)
    place_P[in_rows] = ranges(np.zeros_like(counts_R), counts_R)
    good, counts = np.unique(pieces.articles, return_counts=True)
    index = articles.select(["id", "place"]).take(good)
    for name, values in (("rows", row_P), ("pieces", place_P)):
        index = index.append_column(name, _lists(values, counts))
    return index.combine_chunks()


def describe_split(folder: Path, names: Sequence[str], fingerprint: str) -> None:
    """The two small files by which `datasets` knows a split, whose shards bear these names."""
    from datasets import DatasetInfo, Features

    DatasetInfo(features=Features.from_arrow_schema(SCHEMA)).write_to_directory(str(folder))
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))


def describe(folder: Path) -> None:
    """The file by which `datasets` knows that the folder holds several splits."""
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
