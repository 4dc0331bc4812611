"""A dataset: opened by datasets and by pyarrow, every article on exactly one row, checked."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import invented_articles, write_jsonl

from data_prep.prepare import prepare, summary
from pressroom import dataset, seal
from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.files import sha256_json
from pressroom.recipe import Recipe
from pressroom.spec import FORMAT_VERSION, spec_of
from pressroom.tokenizer import ArticleTokenizer


def rows(folder: Path, split: str) -> list[dict]:
    found: list[dict] = []
    for path in sorted((folder / split).glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            found += pa.ipc.open_stream(source).read_all().to_pylist()
    return found


def articles_of(row: dict) -> list[list[int]]:
    starts = [sum(row["seq_lengths"][:i]) for i in range(len(row["seq_lengths"]))]
    return [row["input_ids"][s : s + n] for s, n in zip(starts, row["seq_lengths"], strict=True)]


def test_every_article_is_on_exactly_one_row_once(make_recipe, home, tokenizer_folder) -> None:
    recipe = make_recipe()
    folder = prepare(recipe)
    tokenizer = ArticleTokenizer(tokenizer_folder)
    found = Counter(
        tokenizer.decode(ids[1:-1])
        for split in dataset.SPLITS
        for row in rows(folder, split)
        for ids in articles_of(row)
    )
    expected = Counter(
        f"### title: {a['title']} ### description: {a['description']}"
        for a in invented_articles(60)
    )
    assert found == expected


def test_rows_are_labelled_and_counted(make_recipe) -> None:
    recipe = make_recipe(prompt={"format": "llama2-chat"}, sequence_length=256)
    folder = prepare(recipe)
    manifest = Manifest.read(folder)
    for split in dataset.SPLITS:
        read = rows(folder, split)
        assert len(read) == manifest.rows(split)
        shards = [s for s in manifest.shards if s.split == split]
        assert sum(len(r["input_ids"]) for r in read) == sum(s.tokens for s in shards)
        trained = sum(label != -100 for r in read for label in r["labels"])
        assert trained == sum(s.trained_tokens for s in shards)
        for row in read:
            start = 0
            for length, prompt in zip(row["seq_lengths"], row["prompt_lengths"], strict=True):
                labels = row["labels"][start : start + length]
                ids = row["input_ids"][start : start + length]
                assert labels == [-100] * prompt + ids[prompt:]
                assert (ids[0], ids[-1]) == (1, 2)
                start += length
            assert start == len(row["input_ids"]) <= recipe.sequence_length


def test_datasets_opens_it(make_recipe) -> None:
    from datasets import load_from_disk

    folder = prepare(make_recipe())
    loaded = load_from_disk(str(folder))
    assert set(loaded) == {"train", "held_out"}
    for split in dataset.SPLITS:
        assert loaded[split].to_list() == rows(folder, split)
    assert str(loaded["train"].features["input_ids"].feature.dtype) == "int32"


def test_same_input_same_bytes_wherever_it_is(make_recipe, home: Path, tmp_path) -> None:
    recipe = make_recipe(articles=[*invented_articles(40), {"title": "no description"}])
    first = prepare(recipe)
    kept = home / "kept"
    shutil.move(first, kept)
    second = prepare(recipe)
    assert second.name == first.name
    files = sorted(p.relative_to(kept) for p in kept.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((kept / f).read_bytes() == (second / f).read_bytes() for f in files)


def test_in_is_out_plus_rejects(make_recipe, home: Path) -> None:
    good = invented_articles(30)
    recipe = make_recipe(articles=[*good, good[3], {"title": "T"}, {"description": "D"}, 7])
    folder = prepare(recipe)
    counts = Manifest.read(folder).counts
    assert counts["read"] == 34
    assert counts["train"] + counts["held_out"] == 30
    assert counts["rejected"] == {
        "duplicate url": 1,
        "no description": 1,
        "no title": 1,
        "not an object": 1,
    }
    listed = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [r["place"] for r in listed] == [f"articles.jsonl:{n}" for n in (31, 32, 33, 34)]
    assert "34 articles read" in summary(folder, Manifest.read(folder))


def test_held_out_articles_are_kept_as_text_and_not_trained_on(make_recipe) -> None:
    folder = prepare(make_recipe())
    held = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert len(held) == Manifest.read(folder).counts["held_out"] > 0
    tokenizer_text = json.dumps(rows(folder, "train"))
    assert all(h["title"] not in tokenizer_text for h in held)


def test_a_failed_preparation_leaves_nothing(make_recipe, home: Path) -> None:
    recipe = make_recipe(articles=invented_articles(1))
    with pytest.raises(UserError, match="not one article is left for the held_out split"):
        prepare(recipe)
    assert list((home / "data").glob("[!.]*")) == []


@pytest.mark.parametrize(
    ("files", "patterns", "message"),
    [
        ({}, ["none.jsonl"], "none.jsonl: no such file"),
        ({"e.jsonl": ""}, ["e.jsonl"], "e.jsonl: is empty"),
        ({}, ["none.jsonl", "*.parquet"], "none.jsonl: no such file.*\n.*parquet: no such file"),
        ({}, ["."], "is not a file"),
        ({}, ["data/**.jsonl"], "data.articles: data/\\*\\*.jsonl: Invalid pattern"),
    ],
)
def test_missing_and_empty_files_are_told_together(
    make_recipe, home: Path, files: dict[str, str], patterns: list[str], message: str
) -> None:
    recipe = make_recipe(data={"articles": patterns})
    for name, text in files.items():
        (home / name).write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(recipe)


def test_globs_and_doubles(make_recipe, home: Path) -> None:
    recipe = make_recipe(data={"articles": ["in/*.jsonl", "in/b.jsonl"]})
    write_jsonl(home / "in" / "a.jsonl", invented_articles(20, seed=1))
    write_jsonl(home / "in" / "b.jsonl", invented_articles(20, seed=2))
    assert list(dataset.article_files(recipe)) == ["in/a.jsonl", "in/b.jsonl"]
    assert Manifest.read(prepare(recipe)).counts["read"] == 40


def test_a_model_that_is_not_there(make_recipe, home: Path) -> None:
    (home / "models" / "llama").mkdir(parents=True)
    recipe = make_recipe(model={"base": "./models/lama"})
    with pytest.raises(UserError, match=r"model.base: ./models/lama: no such folder.*models/llama"):
        prepare(recipe)
    with pytest.raises(UserError, match=r"has no config.json, tokenizer.json"):
        prepare(make_recipe(model={"base": "./models/llama"}))


def test_a_dataset_that_does_not_match_says_what_differs(make_recipe, home: Path) -> None:
    folder = prepare(make_recipe())
    recipe = Recipe.load("recipe.yaml", ["data.lower_case=true", "sequence_length=64"])
    spec = spec_of(recipe, Manifest.read(folder).spec["tokenizer"])
    with pytest.raises(UserError) as caught:
        dataset.check(folder, spec)
    assert "data.lower_case: the dataset has False, the recipe True" in str(caught.value)
    assert "sequence_length: the dataset has 128, the recipe 64" in str(caught.value)


def test_a_damaged_shard_is_named(make_recipe) -> None:
    folder = prepare(make_recipe())
    manifest = Manifest.read(folder)
    seal.require_whole(folder, manifest)
    shard = folder / manifest.shards[0].file
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (folder / manifest.shards[1].file).unlink()
    with pytest.raises(UserError, match=r"missing\n  train/data-00000-of-00001.arrow: damaged"):
        seal.require_whole(folder, manifest)


def test_a_name_decides_only_the_folder(make_recipe) -> None:
    recipe = make_recipe()
    renamed = Recipe.load("recipe.yaml", ["name=other"])
    assert prepare(recipe).name.removeprefix("tiny-") == prepare(renamed).name[len("other-") :]


def test_other_rows_need_another_format_version(make_recipe) -> None:
    """Cleaning, tokenizing or packing otherwise? Raise FORMAT_VERSION, then this hash."""
    hostile = {"title": "<b>A</b> &amp; â€œBâ€\x9d", "description": "long river " * 100}
    folder = prepare(make_recipe(articles=[*invented_articles(20), hostile]))
    found = sha256_json([rows(folder, split) for split in dataset.SPLITS])[:16]
    assert (FORMAT_VERSION, found) == (3, "a915624fbd5e21d7")
