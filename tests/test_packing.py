"""Packing is best-fit-decreasing: nothing dropped, no row overfull, never worse than TRL's."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import invented_articles
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing import pack
from data_prep.tokens import cuts
from pressroom.prompts import FORMATS
from pressroom.tokenizer import ArticleTokenizer

LENGTHS = st.one_of(
    st.lists(st.integers(1, 64), max_size=300),
    st.lists(st.sampled_from([1, 2, 9, 31, 32, 33, 64]), max_size=300),
)


def one_by_one(lengths: list[int], capacity: int) -> list[list[int]]:
    """The definition: each piece, longest first, into the fullest row that has room for it.

    Of rows equally full it takes the one that came to be so last.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    since: list[int] = []
    for time, index in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fits = [row for row in range(len(rows)) if room[row] >= lengths[index]]
        if not fits:
            rows.append([])
            room.append(capacity)
            since.append(0)
            fits = [len(rows) - 1]
        row = min(fits, key=lambda row: (room[row], -since[row]))
        rows[row].append(index)
        room[row] -= lengths[index]
        since[row] = time
    return rows


@given(LENGTHS)
def test_every_piece_lands_in_exactly_one_row_that_has_room(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert rows == pack(lengths, 64)


@given(LENGTHS)
def test_many_at_a_time_is_one_by_one(lengths: list[int]) -> None:
    assert pack(lengths, 64) == one_by_one(lengths, 64)


@given(LENGTHS)
def test_no_two_rows_would_fit_in_one(lengths: list[int]) -> None:
    filled = sorted(sum(lengths[i] for i in row) for row in pack(lengths, 64))
    assert len(filled) < 2 or filled[0] + filled[1] > 64


def by_trl(pieces: list[list[int]], capacity: int) -> list[list[int]]:
    """The rows that TRL makes of tokenized articles with its strategy that drops nothing."""
    from trl.data_utils import _pack_bfd

    table = pa.table({"input_ids": pa.array(pieces, pa.list_(pa.int64()))})
    packed = _pack_bfd(table, capacity, "split")
    return list(packed["input_ids"].to_pylist())


@settings(deadline=None)
@given(LENGTHS.filter(bool))
def test_never_more_rows_than_trl(lengths: list[int]) -> None:
    assert len(pack(lengths, 64)) <= len(by_trl([[1] * n for n in lengths], 64))


@pytest.mark.parametrize("capacity", [256, 1024])
def test_articles_take_no_more_rows_than_trl_takes(tokenizer_folder: Path, capacity: int) -> None:
    """The same tokenized articles, long ones among them; both conserve every token."""
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    articles = invented_articles(1500) + [
        {"title": "the city", "description": "storm fire river " * n} for n in range(5, 100)
    ]
    news = FORMATS["news"]
    tokens = ArticleTokenizer(tokenizer_folder).encode_articles(
        [news.render_prompt(article["title"]) for article in articles],
        [news.render_answer(article["description"]) for article in articles],
    )
    whole = np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])
    dataset = Dataset.from_dict({"input_ids": [ids.tolist() for ids in whole]})
    theirs = pack_dataset(dataset, capacity, "bfd_split")
    owners, starts, lengths = cuts(tokens.lengths, capacity)
    ours = pack(lengths, capacity)
    assert len(ours) <= len(theirs)
    assert lengths.sum() > 0.95 * len(ours) * capacity
    assert sum(map(len, theirs["input_ids"])) == len(tokens.ids)
    found: Counter[int] = Counter()
    for piece in (piece for row in ours for piece in row):
        first = starts[piece]  # what a later piece repeats for context is not a token more
        ids = whole[owners[piece]][first + bool(first) : first + lengths[piece]]
        found.update(ids.tolist())
    assert found == Counter(tokens.ids.tolist())


@pytest.mark.parametrize("lengths", [[0], [65]])
def test_what_fits_no_row_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="piece 0"):
        pack(lengths, 64)
