"""Where an article is, in every dataset, run and model; and what is said when it is nowhere."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from by_hand import index_lines, reseal, write_stream
from conftest import invented_articles, write_jsonl

from data_prep.prepare import prepare
from data_prep.sightings import sightings
from data_prep.trace import main
from pressroom.console import UserError
from pressroom.dataset import INDEX
from pressroom.files import publish_json
from pressroom.identity import article_id
from pressroom.index import SCHEMA

ARTICLES = invented_articles(60)
FIRST = ARTICLES[0]["url"]
NOWHERE = "0123456789abcdef"


def url_of(line: dict) -> str:
    return ARTICLES[int(line["place"].rpartition(":")[2]) - 1]["url"]


@pytest.fixture
def made(make_recipe) -> Path:
    """A dataset with an index, and two articles that were rejected."""
    folder = prepare(make_recipe(articles=ARTICLES))
    rejects = [
        {"place": "articles.jsonl:61", "cause": "not JSON", "detail": "", "id": ""},
        {
            "place": "articles.jsonl:62",
            "cause": "too short",
            "detail": f"3 words \x1b[31m\n  data/x: trained on, as {article_id(FIRST, '', '')}",
            "id": article_id("https://news.example/short", "", ""),
        },
    ]
    write_jsonl(folder / "rejects.jsonl", rejects)
    reseal(folder)
    return folder


@pytest.fixture
def lines(made: Path) -> list[dict]:
    return index_lines(made, ARTICLES)


@pytest.fixture
def traced(output_of) -> Callable[..., tuple[str, int]]:
    """Run the command; return what it says and its exit code."""
    return partial(output_of, main)


def run_of(home: Path, dataset: str, stamp: str, *outputs: str) -> Path:
    """A run that was trained on a dataset, as its folder shows it."""
    folder = home / "runs" / "tiny" / stamp
    for output in outputs:
        (folder / output).mkdir(parents=True)
    shutil.copyfile(home / "recipe.yaml", folder / "recipe.yaml")
    publish_json(folder / "environment.json", {"dataset": dataset})
    return folder


def test_an_article_that_was_trained_on(made: Path, lines, traced, home: Path, monkeypatch) -> None:
    (line,) = [x for x in lines if x["shard"].startswith("train")][7:8]
    text, code = traced(line["id"])
    assert code == 0
    assert text.splitlines() == [
        line["id"],
        f"  {made}: trained on",
        f"    read at {line['place']}",
        f"    in {line['shard']}, its row {line['rows'][0]}",
        "    no run was trained on this dataset",
        "",
        f"looked through: {made}",
    ]
    run_of(home, f"data/{made.name}", "2026-01-01T00-00-00", "adapter", "merged")
    run_of(home, str(made.absolute()), "2026-01-02T00-00-00", "checkpoints")
    run_of(home, "data/tiny-000000000000", "2026-01-03T00-00-00", "adapter")
    (home / "runs/tiny/2026-01-04").mkdir()
    shutil.copyfile(home / "recipe.yaml", home / "runs/tiny/2026-01-04/recipe.yaml")
    shown, code = traced(url_of(line) + "?utm_source=mail#top")
    assert code == 0
    assert shown.splitlines()[0] == f"{line['id']}  {url_of(line)}?utm_source=mail#top"
    runs = home / "runs/tiny"
    first = runs / "2026-01-01T00-00-00"
    assert shown.splitlines()[4:6] == [
        f"    trained on it: {runs / '2026-01-02T00-00-00'} (stopped)",
        f"    trained on it: {first} (finished), {first / 'adapter'}, {first / 'merged'}",
    ]
    (gone,) = [x for x in shown.splitlines() if x.startswith("not looked through")]
    assert "data/tiny-000000000000 is gone; `pressroom prep " in gone
    assert "2026-01-03" in gone
    monkeypatch.setenv("PRESSROOM_HOME", ".")  # a dataset is itself by whatever path
    assert traced(line["id"])[0].count("trained on it") == 2


def test_an_article_that_was_held_out(made: Path, lines, traced, home: Path) -> None:
    run = run_of(home, f"data/{made.name}", "2026-01-01T00-00-00", "adapter")
    (line, *_) = [x for x in lines if x["shard"].startswith("held_out")]
    text, code = traced(line["id"])
    assert code == 0
    assert f"{made}: held out" in text
    assert f"measured by it, not trained on it: {run} (finished)" in text


def test_an_article_that_was_rejected(made: Path, traced) -> None:
    text, code = traced("https://news.example/short/")
    assert code == 0
    assert f"  {made}: rejected\n    read at articles.jsonl:62\n" in text
    assert "\n    too short (3 words \\x1b[31m\\n  data/x: trained on" in text
    # The id in another's detail finds that article alone.
    text, _ = traced(FIRST)
    assert "too short" not in text
    assert len(sightings(made, [article_id(FIRST, "", "")])) == 1


def test_all_datasets_are_looked_through(made: Path, lines, traced) -> None:
    other = shutil.copytree(made, made.parent / "other-0123456789ab")
    moved = [{**line, "place": "b.jsonl:1"} for line in lines if line != lines[3]]
    write_stream(other / INDEX, SCHEMA, moved[:9], moved[9:])
    rejects = (other / "rejects.jsonl").read_text()
    reject = {"place": "b.jsonl:7", "cause": "near-duplicate", "detail": "", "id": lines[3]["id"]}
    (other / "rejects.jsonl").write_text(rejects + json.dumps(reject))  # without an end of line
    reseal(other)
    shutil.copytree(other, made.parent / ".other.prep")
    (made.parent / "articles").mkdir()
    text, code = traced(lines[3]["id"], lines[4]["id"])
    assert code == 0
    first, second, scope = text.split("\n\n")
    assert first.index(f"{other}: rejected") < first.index(f"{made}: trained on")
    assert second.count("trained on\n") == 2
    assert "read at b.jsonl:1\n" in second
    assert scope == f"looked through: {other}, {made}\n"


def test_nothing_is_found(made: Path, traced, home: Path) -> None:
    text, code = traced(NOWHERE)
    assert code == 1
    assert text.splitlines() == [
        NOWHERE,
        "  nowhere: in no dataset, and none has rejected it",
        "",
        f"looked through: {made}",
    ]
    assert traced(NOWHERE, FIRST)[1] == 1
    shutil.rmtree(made)
    text, code = traced(NOWHERE)
    assert code == 1
    assert f"looked through: nothing: no dataset in {home / 'data'}" in text


def test_a_damaged_or_older_dataset_is_not_looked_through(made: Path, lines, traced) -> None:
    older = shutil.copytree(made, made.parent / "older-0123456789ab")
    (older / INDEX).unlink()
    reseal(older)
    content = (made / INDEX).read_bytes()
    place = content.index(lines[2]["id"].encode())
    flipped = bytearray(content)
    flipped[place] ^= 1
    (made / INDEX).write_bytes(flipped)
    text, code = traced(lines[2]["id"])
    assert code == 1
    assert f"not looked through: {made}: {INDEX} is damaged" in text
    assert f"not looked through: {older}: has no {INDEX}, as older datasets do not" in text
    (made / INDEX).write_bytes(content)
    (older / "manifest.json").write_text("{")
    text, code = traced(lines[2]["id"])
    assert code == 0
    assert f"not looked through: {older}/manifest.json: not a dataset's manifest" in text


def test_a_run_that_does_not_say_what_it_was_trained_on(made: Path, lines, traced, home) -> None:
    run = home / "runs/tiny/2026-01-01"
    run.mkdir(parents=True)
    shutil.copyfile(home / "recipe.yaml", run / "recipe.yaml")
    for text in ("{}", "[]", "{"):
        (run / "environment.json").write_text(text)
        shown, code = traced(lines[0]["id"])
        assert code == 0
        assert "not looked through: " in shown
        assert "2026-01-01/environment.json" in shown


def test_the_takedown_list(made: Path, lines, traced, home: Path) -> None:
    run = run_of(home, f"data/{made.name}", "2026-01-01T00-00-00", "adapter", "merged")
    stopped = run_of(home, f"data/{made.name}", "2026-01-02T00-00-00", "logs")
    trained = next(x for x in lines if x["shard"].startswith("train"))
    held = next(x for x in lines if x["shard"].startswith("held_out"))
    short = "https://news.example/short"
    path = home / "data/takedown.txt"
    path.write_text(f"# by law\n{url_of(trained)}\n{held['id']}\n{short}\n{NOWHERE}\n")
    answer = json.loads(traced(trained["id"], "--json")[0])["articles"][0]
    assert answer["takedown"] == f"{path}:2"
    assert answer["still_in"] == [
        str(made),
        str(stopped),
        str(run / "adapter"),
        str(run / "merged"),
    ]
    text, _ = traced(trained["id"])
    assert f"  taken down by {path}:2\n    still in: {made}\n    still in: {stopped}\n" in text
    text, _ = traced(held["id"])
    assert text.count("still in") == 1
    for nowhere in (short, NOWHERE):
        text, _ = traced(nowhere)
        assert "taken down by" in text
        assert "still in" not in text
    not_listed = next(x for x in lines if x["id"] not in (trained["id"], held["id"]))
    assert "taken down" not in traced(not_listed["id"])[0]
    other = home / "other.txt"
    other.write_text(not_listed["id"])
    assert f"taken down by {other}:1" in traced(not_listed["id"], "--takedown", other)[0]


def test_json(made: Path, lines, traced, home: Path) -> None:
    run = run_of(home, f"data/{made.name}", "2026-01-01T00-00-00", "adapter")
    line = next(x for x in lines if x["shard"].startswith("train"))
    text, code = traced(line["id"], "https://news.example/short", NOWHERE, "--json")
    answer = json.loads(text)
    assert code == 1
    found, short, nowhere = answer["articles"]
    assert found == {
        "asked": line["id"],
        "id": line["id"],
        "found": [
            {
                "dataset": str(made),
                "state": "train",
                "place": line["place"],
                "shard": line["shard"],
                "rows": line["rows"],
                "runs": [
                    {"run": str(run), "standing": "finished", "models": [str(run / "adapter")]}
                ],
            }
        ],
        "takedown": None,
        "still_in": [],
    }
    assert [(f["state"], f["cause"]) for f in short["found"]] == [("rejected", "too short")]
    assert nowhere["found"] == []
    assert answer["looked_through"] == [str(made)]
    assert "\x1b" not in text


def test_wrong_arguments(made: Path, traced) -> None:
    with pytest.raises(UserError) as caught:
        traced("abc", "articles.jsonl:3", NOWHERE)
    told = str(caught.value).splitlines()
    assert told[0] == "'abc': 3 hex digits; an article's id has 16"
    assert told[1].startswith("'articles.jsonl:3': a line of a file; an article is named by its id")
    with pytest.raises(UserError, match=r"--takedown .*no.txt: no such file"):
        traced(NOWHERE, "--takedown", "no.txt")
