"""Copies, and sides of the split: pure functions on arrays."""

from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dedupe import HELD_OUT, NEITHER, TRAIN, copies, divide_by_date, divide_by_share

FEW = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)
IDS = [f"{number:016x}" for number in range(600)]


def test_a_copy_is_of_what_is_kept() -> None:
    #                    id  id's copy  text's copy  text and id new  id of the text's copy
    same_id, same_text = copies([0, 0, 1, 2, 1], [0, 7, 0, 3, 3])
    assert same_id.tolist() == [-1, 0, -1, -1, -1]
    assert same_text.tolist() == [-1, -1, 0, -1, 3]


@given(FEW)
def test_what_is_kept_is_unique_and_what_is_not_has_a_kept_original(
    articles: list[tuple[int, int]],
) -> None:
    same_id, same_text = copies([a for a, _ in articles], [b for _, b in articles])
    kept = np.flatnonzero((same_id < 0) & (same_text < 0)).tolist()
    assert len({articles[k][0] for k in kept}) == len({articles[k][1] for k in kept}) == len(kept)
    for index, (id_, text) in enumerate(articles):
        for first, field, own in ((same_id[index], 0, id_), (same_text[index], 1, text)):
            assert first == -1 or (first in kept and first < index)
            assert first == -1 or articles[first][field] == own


def test_a_story_stays_on_its_side_when_others_come() -> None:
    before = divide_by_share(IDS[:300], np.arange(300), 0.1)
    after = divide_by_share(IDS, np.arange(600), 0.1)
    assert (before == after[:300]).all()
    assert 30 <= (after == HELD_OUT).sum() <= 90


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_a_story_is_never_on_both_sides(stories: list[int], share: float) -> None:
    firsts = np.array([stories.index(story) for story in stories])
    sides = divide_by_share(IDS[: len(stories)], firsts, share)
    for first in set(firsts.tolist()):
        assert len(set(sides[firsts == first].tolist())) == 1
    if len(set(stories)) > 1:
        assert set(sides.tolist()) == {TRAIN, HELD_OUT}


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_sides_have_an_article(share: float) -> None:
    assert set(divide_by_share(IDS[:4], np.arange(4), share).tolist()) == {TRAIN, HELD_OUT}


def test_by_date_a_story_that_began_before_is_on_neither_side() -> None:
    published = [
        "2026-01-31T23:59:59+00:00",
        "2026-02-01T00:00:00+00:00",
        None,
        "2026-02-02",  # of the first one's story
        "2026-02-03",  # of the second one's
        "soon",
    ]
    sides, dated = divide_by_date(published, np.array([0, 1, 2, 0, 1, 5]), date(2026, 2, 1))
    assert sides.tolist() == [TRAIN, HELD_OUT, NEITHER, NEITHER, HELD_OUT, NEITHER]
    assert dated.tolist() == [True, True, False, True, True, False]
