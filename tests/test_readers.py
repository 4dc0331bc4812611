"""Arrow files, folders of `datasets`, and columns under other names; a cut file is an error."""

import contextlib
import random
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import invented_articles, write_jsonl

from data_prep.articles import Article, Reject, nothing_good, read_articles
from data_prep.prepare import prepare
from pressroom import dataset, sources
from pressroom.columns import Columns
from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.recipe import Recipe
from pressroom.spec import spec_of

RENAMED = {"title": "headline", "description": "summary", "url": "link", "published_at": "day"}


def read(path: Path, **columns: str) -> list[Article | Reject]:
    names = asdict(Columns(**columns))
    return list(read_articles(path, path.name, lower_case=False, columns=names))


def write(path: Path, records: list[dict], rows_a_batch: int = 7) -> Path:
    """Records as a file of the kind that its suffix names; `.file.arrow` is Arrow's file format."""
    table = pa.Table.from_pylist(records)
    if path.suffix == ".jsonl":
        return write_jsonl(path, records)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    new = pa.ipc.new_file if path.name.endswith(".file.arrow") else pa.ipc.new_stream
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return path


KINDS = ["a.jsonl", "a.parquet", "a.arrow", "a.file.arrow"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_the_same_under_any_names(tmp_path: Path, kind: str) -> None:
    records = invented_articles(20)
    plain = read(write_jsonl(tmp_path / "plain.jsonl", records))
    renamed = [{RENAMED[key]: value for key, value in r.items()} | {"url": "no"} for r in records]
    found = read(write(tmp_path / kind, renamed), **RENAMED)
    assert all(isinstance(item, Article) for item in found)
    assert [{**asdict(a), "place": ""} for a in found] == [
        {**asdict(a), "place": ""} for a in plain
    ]
    assert [a.place for a in found] == [f"{kind}:{i}" for i in range(1, 21)]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_column_that_is_not_there_names_those_that_are(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / kind, [{"Headline": "T", "text": "D", "url": "u"}])
    with pytest.raises(UserError) as caught:
        read(path, title="headline", description="text", published_at="day")
    assert str(caught.value).startswith(
        f"{kind}: has no column headline or day; it has Headline, text, url; did you mean Headline?"
    )
    assert len(read(path, title="Headline", description="text")) == 1


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"])] * 3, names=["title", "title", "description"])
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"a.arrow: has more than one column title"):
        read(tmp_path / "a.arrow")


def test_json_under_other_names_says_what_it_has(tmp_path: Path) -> None:
    [reject] = read(write(tmp_path / "a.jsonl", [{"headline": "T", "summary": "D"}]))
    assert isinstance(reject, Reject)
    assert "a.jsonl:1: no title (no 'title'; it has headline, summary)" in nothing_good(reject)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_a_cut_file_is_never_a_shorter_one(tmp_path: Path, kind: str) -> None:
    records = invented_articles(20)
    whole = write(tmp_path / kind, records).read_bytes()
    cut = tmp_path / f"cut.{kind}"
    for length in range(1, len(whole), 8):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"^cut.{kind}: (damaged|not Arrow)"):
            read(cut)


def test_a_stream_cut_between_batches_says_behind_which_row(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.arrow", invented_articles(20))
    with pa.memory_map(str(whole)) as source:
        reader = pa.ipc.open_stream(source)
        reader.read_next_batch()
        reader.read_next_batch()
        boundary = source.tell()
    data = whole.read_bytes()
    for content, message in [
        (data[:boundary], r"damaged behind row 14: it has no end mark: it was cut off"),
        (data[: boundary + 300], r"damaged behind row 14: "),
        (data + data, r"damaged behind row 20: more follows its end mark"),
    ]:
        whole.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read(whole)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_flipped_bytes_end_nothing_but_the_reading(tmp_path: Path, kind: str) -> None:
    whole = write(tmp_path / kind, invented_articles(20)).read_bytes()
    source = random.Random(3)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(8):
            data[source.randrange(len(data))] = source.randrange(256)
        (tmp_path / kind).write_bytes(data)
        with contextlib.suppress(UserError):
            assert len(read(tmp_path / kind)) <= 20


def test_broken_text_in_arrow_is_a_listed_reject(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"ok\xff")
    )
    table = pa.table({"title": broken, "description": ["D", "D"]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    first, second = read(tmp_path / "a.arrow")
    assert isinstance(first, Article)
    assert isinstance(second, Reject)
    assert (second.place, second.cause) == ("a.arrow:2", "not UTF-8")


def test_folders_that_datasets_wrote(make_recipe, home: Path) -> None:
    from datasets import Dataset, DatasetDict

    records = invented_articles(60)
    alone = Dataset.from_list(records)
    alone.filter(lambda r: r["title"] != records[0]["title"]).save_to_disk("one", num_shards=3)
    DatasetDict(train=alone, test=alone.select([1])).save_to_disk("two")
    recipe = make_recipe(data={"articles": ["one", "two/train"], "held_out": 0.1})
    files = [f"one/data-0000{i}-of-00003.arrow" for i in range(3)]
    assert list(dataset.article_files(recipe)) == [*files, "two/train/data-00000-of-00001.arrow"]
    counts = Manifest.read(prepare(recipe)).counts
    assert (counts["read"], counts["train"] + counts["held_out"]) == (119, 60)

    (home / files[1]).unlink()
    (home / "other").mkdir()
    (home / "broken").mkdir()
    (home / "broken" / "state.json").write_text("[]")
    recipe = make_recipe(data={"articles": ["one", "two", "other", "broken"]})
    with pytest.raises(UserError) as caught:
        dataset.article_files(recipe)
    for line, told in zip(
        str(caught.value).splitlines(),
        [
            f"data.articles: {home}/{files[1]}: no such file",
            f"data.articles: {home}/two: holds several splits: name {home}/two/train or",
            f"data.articles: {home}/other: is not a file, nor a folder that datasets",
            f"data.articles: {home}/broken: not as datasets wrote it",
        ],
        strict=True,
    ):
        assert line.startswith(told)


def test_columns_are_part_of_what_a_dataset_was_made_from(make_recipe, home: Path) -> None:
    recipe = make_recipe()
    folder = prepare(recipe)
    tokenizer = Manifest.read(folder).spec["tokenizer"]
    assert not [key for key in spec_of(recipe, tokenizer) if "columns" in key]
    renamed = Recipe.load("recipe.yaml", ["data.columns.title=headline"])
    with pytest.raises(UserError) as caught:
        dataset.check(folder, spec_of(renamed, tokenizer))
    assert str(caught.value).splitlines()[1:] == [
        "  data.columns.title: the dataset has its default, the recipe 'headline'"
    ]


def test_a_wrong_column_key_is_told_with_its_line(make_recipe, home: Path) -> None:
    columns = {"titel": "headline", "url": ""}
    with pytest.raises(UserError) as caught:
        make_recipe(data={"articles": ["articles.jsonl"], "columns": columns})
    text = (home / "recipe.yaml").read_text().splitlines()
    line = next(number for number, t in enumerate(text, 1) if "titel" in t)
    assert str(caught.value).splitlines() == [
        f"recipe.yaml:{line}: data.columns.titel: unknown key; did you mean title?",
        f"recipe.yaml:{line + 1}: data.columns.url: must not be empty",
    ]


def test_a_hub_entry_is_checked_with_the_recipe(make_recipe) -> None:
    make_recipe()
    with pytest.raises(UserError) as caught:
        Recipe.load("recipe.yaml", ['data.articles=["hub:news", "hub:a/b@"]'])
    assert str(caught.value).splitlines() == [
        "command line: data.articles: hub:news: is not hub:ORG/NAME[@REVISION][/GLOB]: "
        "Repository id must be 'namespace/name', got 'news'.",
        "command line: data.articles: hub:a/b@: is not hub:ORG/NAME[@REVISION][/GLOB]: "
        "Empty revision after '@'.",
    ]


def test_every_known_suffix_has_a_reader(tmp_path: Path) -> None:
    for suffix in sources.SUFFIXES:
        (tmp_path / f"a{suffix}").write_bytes(b"[]\n")
        with contextlib.suppress(UserError):
            [reject] = read(tmp_path / f"a{suffix}")
            assert reject.cause == "not an object"
