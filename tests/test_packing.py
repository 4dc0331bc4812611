"""Packing and splitting drop nothing and train no token twice."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.articles import Article
from data_prep.packing import efficiency, pack
from data_prep.tokens import IGNORE, cuts, tokenize
from pressroom.tokenizer import ArticleTokenizer

LENGTHS = st.lists(st.integers(1, 64), max_size=300)


@given(LENGTHS)
def test_every_piece_lands_in_exactly_one_row_that_has_room(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert rows == pack(lengths, 64)


@given(LENGTHS)
def test_no_two_rows_would_fit_in_one(lengths: list[int]) -> None:
    filled = sorted(sum(lengths[i] for i in row) for row in pack(lengths, 64))
    assert len(filled) < 2 or filled[0] + filled[1] > 64


def test_as_full_as_trl_packs_and_nothing_dropped() -> None:
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    random = np.random.default_rng(0)
    lengths = random.integers(5, 60, 2000).tolist()
    dataset = Dataset.from_dict({"input_ids": [[1] * n for n in lengths]})
    theirs = pack_dataset(dataset, 512, "bfd_split")
    ours = pack(lengths, 512)
    assert len(ours) <= len(theirs)
    assert efficiency(lengths, len(ours), 512) > 0.99


@pytest.mark.parametrize("lengths", [[0], [65]])
def test_what_fits_no_row_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="piece 0"):
        pack(lengths, 64)


@given(st.integers(1, 500), st.integers(2, 64))
def test_cuts_share_one_token_and_cover_all(length: int, capacity: int) -> None:
    pieces = cuts(length, capacity)
    assert all(1 <= stop - start <= capacity for start, stop in pieces)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == length
    assert all(a[1] == b[0] + 1 for a, b in pairwise(pieces))


@pytest.mark.parametrize("train_on", ["all", "answer"])
def test_a_long_article_trains_each_token_once(
    train_on: str, tokenizer_folder, make_recipe
) -> None:
    recipe = make_recipe(sequence_length=32, prompt={"train_on": train_on})
    tokenizer = ArticleTokenizer(tokenizer_folder)
    article = Article("id", "the city", "storm fire river " * 40, None, None, None, None, "line 1")
    (pieces,) = tokenize([article], recipe, tokenizer)
    assert isinstance(pieces, list)
    assert len(pieces) > 3
    whole = [*pieces[0].ids, *(i for p in pieces[1:] for i in p.ids[1:])]
    trained = [i for p in pieces for i in p.labels if i != IGNORE]
    before = sum(p.prompt_length for p in pieces)
    assert trained == (whole[1:] if train_on == "all" else whole[before:])
    assert trained[-1] == tokenizer.eos_id
    assert all(len(p.ids) <= 32 and p.labels[0] == IGNORE for p in pieces)


def test_overlong_can_be_rejected_instead(tokenizer_folder, make_recipe) -> None:
    recipe = make_recipe(
        sequence_length=32, data={"articles": ["articles.jsonl"], "overlong": "reject"}
    )
    article = Article("id", "the city", "storm fire river " * 40, None, None, None, None, "line 1")
    (reject,) = tokenize([article], recipe, ArticleTokenizer(tokenizer_folder))
    assert (reject.place, reject.cause) == ("line 1", "longer than a row")


def test_a_prompt_that_leaves_nothing_to_train_on_is_rejected(
    tokenizer_folder, make_recipe
) -> None:
    recipe = make_recipe(sequence_length=32, prompt={"train_on": "answer"})
    article = Article("id", "river " * 60, "storm", None, None, None, None, "line 1")
    (reject,) = tokenize([article], recipe, ArticleTokenizer(tokenizer_folder))
    assert reject.cause == "prompt fills a row"
