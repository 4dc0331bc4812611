"""Which articles are nearly the same: estimates, what is kept, stories, hostile corpora."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import near
from data_prep.near import Compared, compare, signatures

ROOT = Path(__file__).parents[1]
WORD = st.sampled_from(WORDS)
TEXT = st.lists(WORD, max_size=12).map(" ".join)


def text(words: int, seed: int) -> str:
    """Words that nobody else uses."""
    return " ".join(f"w{seed}x{i}" for i in range(words))


def edited(original: str, changes: int, seed: int) -> str:
    """Some words in a text replaced, far enough apart for each to cost RUN runs."""
    words = original.split()
    for i in range(changes):
        words[(2 * i + 1) * len(words) // (2 * changes)] = f"edit{seed}x{i}"
    return " ".join(words)


def alike(one: str, other: str) -> float:
    first, second = signatures([one, other])
    return float((first == second).mean())


def jaccard(one: str, other: str) -> float:
    first, second = (set(near._runs(t)) for t in (one, other))
    return len(first & second) / len(first | second)


def run(texts: list[str], near_duplicate: float | None = 0.8, same_story: float | None = 0.5):
    return compare(signatures(texts), near_duplicate, same_story)


SAMPLES = ["Mayor opens bridge", "Été: 三人被送往医院。", "", "!"]


def test_a_signature_is_the_same_in_every_process_and_release() -> None:
    """Another hash function makes other signatures: raise FORMAT_VERSION, then these numbers."""
    code = f"from data_prep.near import signatures\nprint(signatures({SAMPLES!r})[:, :2].tolist())"
    environment = os.environ | {"PYTHONHASHSEED": "7", "RENSA_FORCE_KERNEL": "scalar"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    here = signatures(SAMPLES)
    assert here.dtype == np.uint32
    assert here.shape == (4, near.NUM_HASHES)
    assert here[:, :2].tolist() == [
        [2086402634, 3561831255],
        [3286902040, 3679332427],
        [4033697562, 3682541832],
        [3224481865, 3582702297],
    ]
    assert done.stdout.strip() == str(here[:, :2].tolist())


def test_a_process_forked_after_signatures_makes_signatures() -> None:
    """The library's batches start threads: a forked child waits for them for ever."""
    code = (
        "import os, signal\nfrom data_prep.near import signatures\n"
        "texts = [' '.join(f'{i} {j}' for j in range(900)) for i in range(300)]\n"
        "signatures(texts)\npid = os.fork()\n"
        "if pid == 0:\n    signal.alarm(60)\n    signatures(texts)\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


@given(st.lists(TEXT, max_size=5), st.lists(TEXT, max_size=5))
def test_a_signature_depends_on_its_text_alone(before: list[str], after: list[str]) -> None:
    alone = signatures(["mayor opens bridge over river"])[0]
    among = signatures([*before, "mayor opens bridge over river", *after])
    assert (among[len(before)] == alone).all()


@given(st.lists(WORD, min_size=1, max_size=20), st.sampled_from([", ", " - ", "! ", '" ', "\n"]))
def test_case_and_punctuation_do_not_count(found: list[str], between: str) -> None:
    assert alike(" ".join(found), "«" + between.join(found).upper() + "»?") == 1


@pytest.mark.parametrize("length", [4, 30, 800])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 0.95])
def test_estimates_are_near_the_true_share(length: int, share: float) -> None:
    errors = []
    for seed in range(60):
        common = round(length * share)
        one = text(length, seed)
        other = " ".join([*one.split()[:common], *text(length - common, seed + 1000).split()])
        errors.append(alike(one, other) - jaccard(one, other))
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 0.05


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Rain", "Snow"),
        ("Rain falls", "Rain stops"),
        ("", "Rain"),
        ("!!!", "???"),
        ("三人被送往医院", "市议会批准新"),
    ],
)
def test_short_texts_are_told_apart(one: str, other: str) -> None:
    assert alike(one, other) < 0.1
    assert run([one, other]).first_A.tolist() == [-1, -1]
    assert run([one, other, other, one]).first_A.tolist() == [-1, -1, 1, 0]


def test_chinese_is_compared_by_its_characters() -> None:
    one = "市议会周二批准了新的公交专用道两条主要街道的工程将于五月开始预计持续一年"
    assert 0.6 < alike(one, one.replace("五月", "六月")) < 1


def test_empty_texts_are_the_same_and_nothing_else_is() -> None:
    found = run(["", "Rain falls on the old town", ""])
    assert found.first_A.tolist() == [-1, -1, 0]


@given(
    st.lists(TEXT, max_size=25),
    st.sampled_from([None, 0.3, 0.8, 1.0]),
    st.sampled_from([None, 0.2, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_what_compare_promises(texts: list[str], near_duplicate, same_story) -> None:
    made = signatures(texts)
    found = compare(made, near_duplicate, same_story)
    assert_promises(made, found, near_duplicate, same_story)
    again = compare(made.copy(), near_duplicate, same_story)
    for field in ("first_A", "likeness_A", "story_A"):
        assert (getattr(found, field) == getattr(again, field)).all()
    # What comes later changes nothing about what was before.
    part = compare(made[: len(made) // 2], near_duplicate, None)
    assert (part.first_A == compare(made, near_duplicate, None).first_A[: len(made) // 2]).all()


def assert_promises(made, found: Compared, near_duplicate, same_story) -> None:
    for article, first in enumerate(found.first_A.tolist()):
        story = found.story_A[article]
        assert story <= article
        assert found.story_A[story] == story
        if first < 0:
            assert found.likeness_A[article] == 0
            continue
        assert first < article
        assert found.first_A[first] == -1
        assert found.likeness_A[article] == (made[article] == made[first]).mean()
        assert found.likeness_A[article] >= near_duplicate
        assert story == found.story_A[first]
    equal = {row.tobytes(): i for i, row in reversed(list(enumerate(made)))}
    for article, row in enumerate(made):
        earlier = equal[row.tobytes()]
        if near_duplicate is not None and earlier < article and found.first_A[earlier] < 0:
            assert found.first_A[article] == earlier
            assert found.likeness_A[article] == 1
        if same_story is not None:
            assert found.story_A[article] == found.story_A[earlier]
    if same_story is None and near_duplicate is None:
        assert (found.story_A == np.arange(len(made))).all()


def test_against_every_pair() -> None:
    """What buckets find is what all pairs would show."""
    texts = [edited(text(60, seed // 8), seed % 8, seed) for seed in range(400)]
    random.Random(0).shuffle(texts)
    made = signatures(texts)
    likeness_AA = (made[:, None] == made[None]).mean(axis=2)
    kept: list[int] = []
    first_A = []
    for article in range(len(texts)):
        beside = likeness_AA[article, kept]
        is_new = not kept or beside.max() < 0.8
        first_A.append(-1 if is_new else kept[int(beside.argmax())])
        if is_new:
            kept.append(article)
    found = compare(made, 0.8, 0.5)
    assert 0.1 < np.mean(found.first_A >= 0) < 0.9
    assert (found.first_A == first_A).mean() > 0.99
    same = [(a, b) for a in kept for b in kept if b < a and likeness_AA[a, b] >= 0.5]
    assert len(same) > 100
    assert np.mean([found.story_A[a] == found.story_A[b] for a, b in same]) > 0.99
    for article, story in enumerate(found.story_A.tolist()):
        assert max(texts[article].split())[:4] == max(texts[story].split())[:4]


def test_the_nearest_is_named() -> None:
    one = text(60, 1)
    texts = [one, edited(one, 4, 1), edited(one, 4, 2), edited(edited(one, 4, 2), 1, 3)]
    found = run(texts)
    assert found.first_A.tolist() == [-1, -1, -1, 2]
    assert found.story_A.tolist() == [0, 0, 0, 0]


def test_a_story_that_spreads_with_small_edits() -> None:
    """Each is near the one before; what is too far from all that are kept is kept, in the story."""
    versions = [text(60, 1)]
    for step in range(12):
        words = versions[-1].split()
        words[5 * step % 60] = f"new{step}"
        versions.append(" ".join(words))
    others = [text(60, seed) for seed in range(100, 113)]
    found = run([t for pair in zip(versions, others, strict=True) for t in pair])
    assert (found.story_A[::2] == 0).all()
    assert found.story_A[1::2].tolist() == list(range(1, 26, 2))
    assert 0 < (found.first_A[::2] >= 0).sum() < 12
    assert jaccard(versions[0], versions[-1]) < 0.5


def test_what_is_not_kept_makes_nothing_else_a_duplicate() -> None:
    one = text(100, 1)
    two = edited(one, 3, 2)
    three = edited(two, 5, 3)
    assert jaccard(one, two) > 0.82 > 0.8 > 0.77 > jaccard(one, three)
    found = run([one, two, three])
    assert found.first_A.tolist() == [-1, 0, -1]


def test_what_shares_too_little_is_another_story() -> None:
    texts = [t for s in range(20) for t in (text(60, s), edited(text(60, s), 11, s))]
    assert 0.2 < jaccard(*texts[:2]) < 0.3
    assert run(texts).story_A.tolist() == list(range(40))
    assert run(texts, None, 0.1).story_A.tolist() == [i // 2 * 2 for i in range(40)]


def test_unrelated_articles_are_alone() -> None:
    words = random.Random(3)
    texts = [" ".join(words.choice(WORDS) for _ in range(40)) for _ in range(500)]
    found = run(texts)
    assert (found.first_A == -1).all()
    assert (found.story_A == np.arange(500)).all()


def test_nothing_asked_nothing_found() -> None:
    found = run(["Rain", "Rain"], None, None)
    assert found.first_A.tolist() == [-1, -1]
    assert found.story_A.tolist() == [0, 1]
    assert run(["Rain", "Rain"], None, 0.5).story_A.tolist() == [0, 0]
    assert run(["Rain", "Rain"], 0.8, None).first_A.tolist() == [-1, 0]
    assert run([]).first_A.tolist() == []


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("the same", ["Mayor opens the bridge over the river"] * 3000),
        ("a template", [f"Stock {i} closes at {i % 97} after a quiet day" for i in range(3000)]),
    ],
)
def test_hostile_corpora_are_looked_at_a_bounded_number_of_times(
    name: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = signatures(texts)
    looked = []
    plain = near._Buckets.kept_beside

    def counting(self, article: int):
        found = plain(self, article)
        looked.append(len(found))
        return found

    monkeypatch.setattr(near._Buckets, "kept_beside", counting)
    found = compare(made, 0.8, 0.5)
    assert_promises(made, found, 0.8, 0.5)
    assert len(looked) == 3000
    assert max(looked) <= near._LOOKS * len(near._bands(0.5))
    if name == "the same":
        assert (found.first_A[1:] == 0).all()


def test_of_a_bucket_the_first_and_the_latest_are_looked_at() -> None:
    buckets = near._Buckets(signatures(["Mayor opens bridge"] * 20), 0.5)
    for article in range(19):
        buckets.keep(article)
    latest = range(19 - near._LOOKS + 1, 19)
    assert buckets.kept_beside(19).tolist() == [0, *latest]


@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.5, 0.8, 0.95, 1.0])
def test_bands_meet_the_recall(threshold: float) -> None:
    *bands, whole = near._bands(threshold)
    rows = bands[0].stop
    assert all(b.stop - b.start == rows for b in bands)
    assert whole == slice(0, near.NUM_HASHES)
    missed = (1 - threshold**rows) ** len(bands)
    assert missed <= 1 - near._RECALL or rows == 1
