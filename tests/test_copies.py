"""Near-copies: every run that a text and a description have in common, found in one pass."""

import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, invented_articles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import shards
from data_prep.prepare import prepare
from generate import copies, shared_runs
from generate.copies import LONG, Shared, Source, search
from generate.shared_runs import RUN
from pressroom.dataset import TOKENIZER, Manifest
from pressroom.index import on_rows, read_index
from pressroom.rows import open_shard
from pressroom.tokenizer import ArticleTokenizer


@pytest.fixture
def made(make_recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset whose shard has several batches, with an article that is split over rows."""
    monkeypatch.setattr(shards, "_BATCH_TOKENS", 512)
    articles = invented_articles(80)
    source = random.Random(5)
    long = " ".join(source.choice(WORDS) + str(source.randrange(99)) for _ in range(150))
    again = {"title": "Again", "description": 3 * " ".join(WORDS[10:28]) + "."}
    return prepare(make_recipe(articles=[*articles, {"title": "Long", "description": long}, again]))


def descriptions(folder: Path, split: str = "train") -> dict[str, list[list[int]]]:
    """Article -> the tokens of its description, by piece, without eos."""
    found: dict[str, list[list[int]]] = {}
    eos = ArticleTokenizer(folder / TOKENIZER).eos_id
    for shard in Manifest.read(folder).shards:
        if shard.split != split:
            continue
        names = on_rows(read_index(folder), shard.file)
        for row, columns in enumerate(open_shard(folder / shard.file).to_pylist()):
            start = 0
            both = zip(columns["seq_lengths"], columns["prompt_lengths"], strict=True)
            for piece, (length, prompt) in enumerate(both):
                ids = columns["input_ids"][start + prompt : start + length]
                found.setdefault(names[row, piece][0], []).append([i for i in ids if i != eos])
                start += length
    return found


def look(folder: Path, *texts: list[int]) -> list[Shared]:
    return search(folder, Manifest.read(folder), texts)


def test_a_copy_is_found_with_its_article(made: Path) -> None:
    for article, pieces in descriptions(made).items():
        ids = pieces[0]
        if len(ids) < RUN:
            continue
        (found,) = look(made, ids)
        assert found.num_tokens == found.tokens == len(ids)
        assert found.is_near_copy
        assert Source(article, len(ids), len(ids), 0) in found.sources


def test_titles_neighbours_and_held_out_articles_are_no_sources(made: Path) -> None:
    """What stands in a row, but in no description; across two of its articles, too."""
    texts = [piece for pieces in descriptions(made, "held_out").values() for piece in pieces]
    for shard in Manifest.read(made).shards:
        rows = open_shard(made / shard.file)
        assert len(rows["input_ids"].chunks) > 1 or shard.split != "train"
        for row in rows.to_pylist():
            ids, end = row["input_ids"], row["seq_lengths"][0]
            texts.append(ids[1 : row["prompt_lengths"][0]])
            texts.append(ids[end - 9 : end + 9])
    assert max(len(text) for text in texts) > 2 * RUN
    described = [piece for pieces in descriptions(made).values() for piece in pieces]
    for text, found in zip(texts, look(made, *texts), strict=True):
        windows = [text[i : i + RUN] for i in range(len(text) - RUN + 1)]
        known = any(
            window == piece[i : i + RUN]
            for window in windows
            for piece in described
            for i in range(len(piece) - RUN + 1)
        )
        assert bool(found.sources) == known


def test_hashes_that_are_alike_mislead_nobody(made: Path, monkeypatch) -> None:
    texts = [piece for pieces in descriptions(made).values() for piece in pieces]
    expected, hashes = look(made, *texts), shared_runs._hashes
    monkeypatch.setattr(shared_runs, "_REPEATS", 10**6)
    monkeypatch.setattr(shared_runs, "_hashes", lambda ids: hashes(ids) & np.uint64(7 << 58))
    assert look(made, *texts) == expected


def test_what_is_too_short_or_new_has_no_source(made: Path) -> None:
    short = next(iter(descriptions(made).values()))[0][: RUN - 1]
    found = look(made, short, [], list(range(300, 340)))
    assert [(one.num_tokens, one.tokens, one.sources) for one in found] == [
        (len(short), 0, ()),
        (0, 0, ()),
        (40, 0, ()),
    ]
    assert not any(one.is_near_copy for one in found)


def test_a_copy_of_a_split_article_is_all_of_one(made: Path) -> None:
    article, pieces = max(descriptions(made).items(), key=lambda item: len(item[1]))
    assert len(pieces) > 1
    whole = [*pieces[0], *(i for piece in pieces[1:] for i in piece[1:])]
    (found,) = look(made, whole)
    assert found.sources[0] == Source(article, len(whole), len(whole), 0)
    cut = len(pieces[0])  # the piece behind it repeats its last token
    (found,) = look(made, whole[cut - 30 : cut + 30])
    assert found.sources[0] == Source(article, 60, 60, 0)


def test_the_article_that_makes_it_a_near_copy_is_named_first() -> None:
    """Many runs of one article beside a long one of another; and of pieces, the right ones stay."""
    of_many = [copies._Run(n, n + 11, 0) for n in range(60, 200, 11)]
    found = copies._sources(300, {"many": of_many, "long": [copies._Run(0, 55, 3)]})
    assert [source.article for source in found] == ["long", "many"]
    assert found[1].tokens > found[0].tokens
    pieces = {(n, 0): [(0, 11)] * 10 for n in range(9)} | {(9, 0): [(0, 100)]}
    runs = {0: {**pieces, (10, 0): [(100, 150)]}}
    shared_runs._keep_most(runs)
    assert {(9, 0), (10, 0)} <= runs[0].keys()
    assert len(runs[0]) == shared_runs.MOST
    runs = {0: {(n, 0): [(0, 11), (20, 31), (40, 51)] for n in range(9)} | {(9, 0): [(60, 80)]}}
    shared_runs._keep_most(runs)
    assert (9, 0) in runs[0]  # has the longest run


def test_repetitions_take_no_endless_memory(made: Path, monkeypatch) -> None:
    ids = descriptions(made)
    (article,) = [a for a, pieces in ids.items() if len(pieces) == max(map(len, ids.values()))]
    text = ids[article][0][:20] * 100
    sizes, runs_of = [], shared_runs.Windows._runs
    monkeypatch.setattr(shared_runs, "_MATCHES", 40)

    def counted(self, pieces, at_M, *others):
        sizes.append(len(at_M))
        return runs_of(self, pieces, at_M, *others)

    monkeypatch.setattr(shared_runs.Windows, "_runs", counted)
    (found,) = look(made, text)
    assert found.sources[0].article == article
    assert max(sizes) <= 40 + shared_runs._REPEATS * 128  # one piece's, behind others


def test_what_repeats_itself_is_one_run(made: Path) -> None:
    tokenizer, texts = ArticleTokenizer(made / TOKENIZER), descriptions(made)
    phrase = " ".join(WORDS[10:28])
    (article,) = [a for a, pieces in texts.items() if phrase in tokenizer.decode(pieces[0])]
    ids = texts[article][0]
    for text in (ids, ids[: 2 * len(ids) // 3], ids[len(ids) // 4 :]):
        (found,) = look(made, text)
        assert found.sources == (Source(article, len(text), len(text), 0),)


def test_a_changed_word_parts_a_run(made: Path) -> None:
    article, pieces = max(descriptions(made).items(), key=lambda item: len(item[1][0]))
    ids = list(pieces[0])
    ids[20] = 3
    (found,) = look(made, ids)
    assert found.sources[0] == Source(article, len(ids) - 1, len(ids) - 21, 21)
    assert found.tokens == len(ids) - 1


def by_hand(text: list[int], articles: dict[str, list[list[int]]]) -> tuple[int, dict[str, tuple]]:
    """Tokens in any run; of each article the tokens and the longest run, one window at a time."""
    anywhere, found = set(), {}
    for article, pieces in articles.items():
        covered, longest = set(), 0
        for piece in pieces:
            for a in range(len(text)):
                for b in range(len(piece)):
                    length = 0
                    while text[a + length : a + length + 1] == piece[b + length : b + length + 1]:
                        if a + length == len(text):
                            break
                        length += 1
                    if length >= RUN:
                        covered |= set(range(a, a + length))
                        longest = max(longest, length)
        if covered:
            found[article] = (len(covered), longest)
        anywhere |= covered
    return len(anywhere), found


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_finds_what_a_search_by_hand_finds(made: Path, data: st.DataObject) -> None:
    """Texts are cut out of articles and put together."""
    articles = descriptions(made)
    pieces = [piece for several in articles.values() for piece in several]
    part = st.sampled_from(pieces).flatmap(
        lambda piece: st.tuples(st.integers(0, len(piece)), st.integers(1, 40)).map(
            lambda cut: piece[cut[0] : cut[0] + cut[1]]
        )
    )
    text = st.lists(part, max_size=4).map(lambda parts: [*chain(*parts)])
    texts = data.draw(st.lists(text, max_size=3))
    for text, found in zip(texts, look(made, *texts), strict=True):
        tokens, expected = by_hand(text, articles)
        assert found.tokens == tokens
        if len(expected) <= shared_runs.MOST / 2:  # of many, some are named
            assert {s.article: (s.tokens, s.longest) for s in found.sources} == expected


def test_near_copies_by_their_rules() -> None:
    one = Source("a", 20, 20, 0)
    assert Shared(40, 20, (one,)).is_near_copy
    assert not Shared(41, 20, (one,)).is_near_copy
    assert Shared(500, 50, (Source("a", LONG, LONG, 3),)).is_near_copy
    assert not Shared(500, 60, (Source("a", LONG - 1, LONG - 1, 3), one)).is_near_copy


def test_hashes_are_of_windows() -> None:
    ids = np.arange(40, dtype=np.int32) % 13
    found = shared_runs._hashes(ids)
    assert len(found) == 40 - RUN + 1
    assert found[0] == found[13]
    assert len(set(found.tolist())) == 13
    assert len(shared_runs._hashes(ids[: RUN - 1])) == 0
