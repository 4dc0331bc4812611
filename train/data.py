"""A dataset's rows for this run, in an order that no GPU count changes.

No rank ever tokenizes: rows are memory-mapped Arrow. The rows of a step are a pure function of
seed, step and global batch size: pass after pass over all rows, each in an order of its own, cut
into steps without regard to where a pass ends. Knows nothing of the model.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from torch.utils.data import Sampler

from pressroom.dataset import IGNORE
from pressroom.recipe import Recipe


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


def step_rows(step: int, *, num_rows: int, global_batch_size: int, seed: int) -> list[int]:
    """The rows of one optimizer step, counted from 0.

    >>> [step_rows(s, num_rows=4, global_batch_size=3, seed=0) for s in range(4)]
    [[2, 0, 1], [3, 3, 0], [2, 1, 2], [1, 0, 3]]
    """
    places = range(step * global_batch_size, (step + 1) * global_batch_size)
    return [int(_order(p // num_rows, num_rows, seed)[p % num_rows]) for p in places]


@lru_cache(maxsize=2)
def _order(epoch: int, num_rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


class RankBatches(Sampler[list[int]]):
    """The micro-batches of one rank over a whole run, as lists of rows.

    Args:
        recipe: Batch sizes and seed.
        num_rows: Rows of the dataset.
        rank: Of this process.
        world_size: Of all.
    """

    def __init__(self, recipe: Recipe, num_rows: int, *, rank: int, world_size: int) -> None:
        self._recipe, self._num_rows, self._rank = recipe, num_rows, rank
        self._stride = recipe.batch.micro * world_size
        self._accumulation = recipe.batch.gradient_accumulation_steps(world_size)
        self._num_steps = recipe.num_steps(num_rows)

    def __len__(self) -> int:
        return self._num_steps * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        size = self._recipe.batch.micro
        for step in range(self._num_steps):
            rows = step_rows(
                step,
                num_rows=self._num_rows,
                global_batch_size=self._recipe.batch.global_batch_size,
                seed=self._recipe.seed,
            )
            for micro_step in range(self._accumulation):
                first = micro_step * self._stride + self._rank * size
                yield rows[first : first + size]
