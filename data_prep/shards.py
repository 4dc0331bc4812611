"""Packed rows -> Arrow shards that `datasets.load_from_disk` and plain pyarrow open.

A row has `input_ids`, `labels` (-100 where no loss), `seq_lengths` (tokens of each article's
piece) and `prompt_lengths` (how many of those come before the description); all int32. The same
rows give the same bytes. Knows nothing of articles.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.tokens import Ids, Piece
from pressroom.dataset import IGNORE, SPLITS, Shard
from pressroom.files import sha256_file

_SHARD_TOKENS = 2**24
_BATCH_ROWS = 1000
COLUMNS = ("input_ids", "labels", "seq_lengths", "prompt_lengths")
SCHEMA = pa.schema([(name, pa.list_(pa.int32())) for name in COLUMNS])


def write_split(
    folder: Path, split: str, pieces: Sequence[Piece], rows: Sequence[Sequence[int]], capacity: int
) -> list[Shard]:
    """Write the shards of one split, each about 128 MB; return what is in each.

    Args:
        folder: The dataset's folder.
        split: `train` or `held_out`.
        pieces: All pieces of the split.
        rows: For each row the indices of its pieces.
        capacity: Tokens of a row.
    """
    (folder / split).mkdir(parents=True)
    rows_per_shard = max(1, _SHARD_TOKENS // capacity)
    num_shards = max(1, -(-len(rows) // rows_per_shard))
    names = [f"data-{i:05d}-of-{num_shards:05d}.arrow" for i in range(num_shards)]
    shards = []
    for number, name in enumerate(names):
        chosen = rows[number * rows_per_shard : (number + 1) * rows_per_shard]
        packed = [[pieces[i] for i in row] for row in chosen]
        shards.append(_write_shard(folder, f"{split}/{name}", packed))
    content = "".join(shard.sha256 for shard in shards)
    _describe_split(folder / split, names, hashlib.sha256(content.encode()).hexdigest()[:16])
    return shards


def _write_shard(folder: Path, name: str, rows: Sequence[Sequence[Piece]]) -> Shard:
    tokens = trained = 0
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for start in range(0, len(rows), _BATCH_ROWS):
            batch = rows[start : start + _BATCH_ROWS]
            ids = [np.concatenate([p.ids for p in row]) for row in batch]
            labels = [np.concatenate([p.labels for p in row]) for row in batch]
            columns = [
                ids,
                labels,
                [np.array([len(p.ids) for p in row], dtype=np.int32) for row in batch],
                [np.array([p.prompt_length for p in row], dtype=np.int32) for row in batch],
            ]
            writer.write_batch(pa.record_batch([_lists(c) for c in columns], schema=SCHEMA))
            tokens += sum(map(len, ids))
            trained += sum(int((label != IGNORE).sum()) for label in labels)
    return Shard(
        split=name.partition("/")[0],
        file=name,
        rows=len(rows),
        tokens=tokens,
        trained_tokens=trained,
        sha256=sha256_file(folder / name),
    )


def _lists(arrays: Sequence[Ids]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


def _describe_split(folder: Path, names: Sequence[str], fingerprint: str) -> None:
    """The two small files by which `datasets` knows a split."""
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
