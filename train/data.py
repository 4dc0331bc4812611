"""A dataset's rows for this run. No rank ever tokenizes: rows are memory-mapped Arrow.

Knows nothing of the model.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

IGNORE = -100


def load_rows(folder: Path, split: str) -> Dataset:
    """The packed rows of one split, memory-mapped.

    Columns `input_ids`, `labels` and `seq_lengths`, each a list of int32.
    """
    return load_from_disk(str(folder / split)).select_columns(
        ["input_ids", "labels", "seq_lengths"]
    )


def rank_batch(
    rows: Dataset, start: int, *, rank: int, world_size: int, micro_batch_size: int
) -> list[dict[str, Any]]:
    """One rank's part of `world_size * micro_batch_size` rows from `start`.

    A rank for which nothing is left gets a row without labels: it takes part in the collectives
    of the forward pass and adds nothing to a sum.
    """
    first = start + rank * micro_batch_size
    batch = [dict(rows[i]) for i in range(first, min(first + micro_batch_size, len(rows)))]
    if batch:
        return batch
    row = dict(rows[0])
    return [{**row, "labels": [IGNORE] * len(row["labels"])}]
