"""Near copies, stories and units, from articles to the files of a dataset."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import invented_articles, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from data_prep.decide import PackUnit, pack_units
from data_prep.prepare import prepare
from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.identity import article_id


def syndicated(article: dict, number: int, one_in: int) -> dict:
    """The same story at another outlet, one in so many of its words changed."""
    text = article["description"].split()
    for place in range(3, len(text), one_in):
        text[place] = f"changed{number}x{place}"
    return article | {"url": f"https://outlet{number}.example/", "description": " ".join(text)}


def long_articles(count: int) -> list[dict]:
    """Articles long enough for a word or two to change little."""
    parts = [invented_articles(count, seed) for seed in range(8)]
    return [
        article | {"description": " ".join(part[i]["description"] for part in parts)}
        for i, article in enumerate(parts[0])
    ]


def sides(folder: Path, articles: list[dict]) -> dict[str, str]:
    """Title and URL -> where an article went."""
    held = {json.loads(line)["id"] for line in (folder / "held_out.jsonl").open()}
    rejects = {
        json.loads(line)["place"]: json.loads(line)["cause"]
        for line in (folder / "rejects.jsonl").open()
    }
    return {
        article["url"]: rejects.get(
            f"articles.jsonl:{line}",
            "held out" if article_id(article["url"], "", "") in held else "train",
        )
        for line, article in enumerate(articles, start=1)
    }


def test_a_near_copy_is_rejected_and_a_retelling_stays_on_its_side(make_recipe) -> None:
    originals = long_articles(80)
    near = [syndicated(article, number, 100) for number, article in enumerate(originals)]
    told_again = [syndicated(a, 1000 + n, 16) for n, a in enumerate(originals)]
    articles = [*originals, *near, *told_again]
    folder = prepare(
        make_recipe(articles=articles, data={"articles": ["*.jsonl"], "held_out": 0.3})
    )
    found = sides(folder, articles)
    assert all(found[article["url"]] == "near duplicate" for article in near)
    pairs = [(found[a["url"]], found[b["url"]]) for a, b in zip(originals, told_again, strict=True)]
    assert {a for a, _ in pairs} == {"train", "held out"}
    assert all(a == b for a, b in pairs)
    reject = json.loads((folder / "rejects.jsonl").read_text().splitlines()[0])
    assert reject["detail"].endswith("% of articles.jsonl:1")


def test_stories_can_be_left_alone(make_recipe) -> None:
    originals = long_articles(60)
    articles = [*originals, *(syndicated(a, n, 100) for n, a in enumerate(originals))]
    data = {"articles": ["*.jsonl"], "near_duplicate": None, "same_story": None, "held_out": 0.3}
    found = sides(prepare(make_recipe(articles=articles, data=data)), articles)
    assert set(found.values()) == {"train", "held out"}
    assert any(
        found[a["url"]] != found[f"https://outlet{n}.example/"] for n, a in enumerate(originals)
    )


def test_by_date_a_story_that_began_before_is_not_held_out(make_recipe) -> None:
    old, new = long_articles(40), invented_articles(10, seed=9)
    for article in old:
        article["published_at"] = "2026-01-10"
    for article in new:
        article["published_at"] = "2026-02-03"
    again = [syndicated(a, n, 16) | {"published_at": "2026-02-02"} for n, a in enumerate(old[:15])]
    articles = [*old, *new, *again]
    data = {"articles": ["*.jsonl"], "held_out": "2026-02-01"}
    found = sides(prepare(make_recipe(articles=articles, data=data)), articles)
    assert {found[a["url"]] for a in old} == {"train"}
    assert {found[a["url"]] for a in new} == {"held out"}
    assert {found[a["url"]] for a in again} == {"its story began before held_out"}


def test_all_files_without_a_good_article_are_told(make_recipe, home: Path) -> None:
    recipe = make_recipe(data={"articles": ["*.jsonl"]})
    write_jsonl(home / "b.jsonl", [{"headline": "T", "summary": "D"}])
    (home / "c.jsonl").write_text("title,description\nT,D\n")
    with pytest.raises(UserError) as caught:
        prepare(recipe)
    assert [line[:60] for line in str(caught.value).splitlines()] == [
        "b.jsonl: not one good article; b.jsonl:1: no title (no 'titl",
        "c.jsonl: not one good article; c.jsonl:1: not JSON (Expecting"[:60],
    ]


def test_a_file_of_unwanted_articles_and_one_without_any_stop_nothing(
    make_recipe, home: Path
) -> None:
    data = {"articles": ["*.jsonl", "*.parquet"], "quality": {"min_words": 4}}
    recipe = make_recipe(data=data)
    write_jsonl(home / "b.jsonl", [{"title": "T", "description": "too few"}])
    schema = pa.schema([("title", pa.string()), ("description", pa.string())])
    pq.write_table(schema.empty_table(), home / "c.parquet")
    counts = Manifest.read(prepare(recipe)).counts
    assert (counts["read"], counts["rejected"]) == (61, {"too few words": 1})


def test_what_left_no_article_is_told_with_an_example(make_recipe) -> None:
    articles = [a | {"published_at": "2017/2/7"} for a in invented_articles(20)]
    data = {"articles": ["*.jsonl"], "held_out": "2017-02-01"}
    with pytest.raises(UserError) as caught:
        prepare(make_recipe(articles=[*articles, {"title": "T"}], data=data))
    assert str(caught.value) == (
        "data: not one article is left for the train split: of 21 0 to train on, 0 held out by "
        "data.held_out; rejected: 20 no date of publication, 1 no description; as "
        "articles.jsonl:1: '2017/2/7' does not begin with YYYY-MM-DD"
    )


def test_half_a_character_outside_the_text(make_recipe) -> None:
    half = {"title": "T", "description": "D", "url": "https://a.example/\ud800"}
    articles: list = [
        *invented_articles(20),
        half | {"category": "\udc00", "source": "\ud800x", "published_at": "\ud800"},
        {"description": "D", "\ud800": 1},
        {"title": 5, "url": "https://a.example/5"},
    ]
    folder = prepare(make_recipe(articles=articles))
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").open()]
    assert [reject["cause"] for reject in rejects] == ["no title", "title is not text"]
    assert rejects[1]["id"] == article_id("https://a.example/5", "", "")


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(1, 50)), max_size=60), st.integers(1, 80))
def test_units_hold_each_article_once_and_grow_at_the_end_alone(
    rows: list[tuple[int, int]], unit_bytes: int
) -> None:
    def units(count: int) -> list[PackUnit]:
        sides_R = np.array([side for side, _ in rows[:count]], np.int8)
        return pack_units(sides_R, np.array([size for _, size in rows[:count]]), unit_bytes)

    for side in (0, 1):
        ours = [unit for unit in units(len(rows)) if unit.side == side]
        held = [[row for row in range(u.start, u.stop) if rows[row][0] == side] for u in ours]
        assert list(chain.from_iterable(held)) == [
            row for row, (s, _) in enumerate(rows) if s == side
        ]
        for unit in held:
            assert sum(rows[row][1] for row in unit[:-1]) <= unit_bytes + 50
        before = [unit for unit in units(len(rows) // 2) if unit.side == side]
        assert ours[: max(len(before) - 1, 0)] == before[:-1]
