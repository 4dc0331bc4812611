"""Datasets changed by hand: rows that preparation would never write."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from conftest import invented_articles

from data_prep.prepare import prepare
from pressroom.dataset import IGNORE, TOKENIZER, Manifest
from pressroom.files import sha256_file
from pressroom.identity import article_id
from pressroom.rows import SCHEMA
from pressroom.tokenizer import ArticleTokenizer

Row = dict[str, list[int]]


def read_rows(folder: Path, split: str) -> list[Row]:
    path = folder / split / "data-00000-of-00001.arrow"
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def rewrite(folder: Path, change: Callable[[list[Row]], Any]) -> None:
    """Change the training rows by hand, with a manifest that is right about what it can know."""
    rows = read_rows(folder, "train")
    change(rows)
    path = folder / "train/data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        # Two batches, so that numbers of rows go on over their border.
        for part in (rows[:3], rows[3:]):
            writer.write_batch(pa.RecordBatch.from_pylist(part, schema=SCHEMA))
    manifest = Manifest.read(folder)
    labels = [label for row in rows for label in row["labels"]]
    shard = replace(
        manifest.shards[0],
        rows=len(rows),
        tokens=sum(len(row["input_ids"]) for row in rows),
        trained_tokens=sum(label != IGNORE for label in labels),
        sha256=sha256_file(path),
    )
    replace(manifest, shards=(shard, *manifest.shards[1:])).write(folder)


def long_article(make_recipe, **sections: Any) -> Path:
    words = " ".join(f"word{i}" for i in range(60))
    articles = [*invented_articles(20), {"title": "Another long one", "description": words}]
    return prepare(make_recipe(articles=articles, sequence_length=64, **sections))


def reseal(folder: Path, **changes: Any) -> None:
    """Write a manifest that is right about every file as it now is, and otherwise as told."""
    manifest = replace(Manifest.read(folder), **changes)
    shards = tuple(replace(s, sha256=sha256_file(folder / s.file)) for s in manifest.shards)
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    names = {str(p.relative_to(folder)): p for p in others}
    files = {n: sha256_file(p) for n, p in names.items() if n not in {s.file for s in shards}}
    replace(manifest, shards=shards, files=files).write(folder)


def reshard(folder: Path, *counts: int) -> None:
    """Divide the training rows into shards of so many rows; the last takes what is left."""
    rows = read_rows(folder, "train")
    manifest = Manifest.read(folder)
    held_out = [s for s in manifest.shards if s.split == "held_out"]
    (folder / "train/data-00000-of-00001.arrow").unlink()
    shards = []
    for number, count in enumerate((*counts, len(rows) - sum(counts))):
        name = f"train/data-{number:05}-of-{len(counts) + 1:05}.arrow"
        part, rows = rows[:count], rows[count:]
        write_stream(folder / name, SCHEMA, part)
        shard = replace(
            manifest.shards[0],
            file=name,
            rows=len(part),
            tokens=sum(len(row["input_ids"]) for row in part),
            trained_tokens=sum(x != IGNORE for row in part for x in row["labels"]),
        )
        shards.append(shard)
    reseal(folder, shards=(*shards, *held_out))


def write_stream(path: Path, schema: pa.Schema, *parts: list[Any]) -> None:
    """An Arrow stream with a batch for each list of rows."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for part in parts:
            writer.write_batch(pa.RecordBatch.from_pylist(part, schema=schema))


def index_lines(folder: Path, articles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The index of a dataset whose articles fit in a row each, from the text of its rows."""
    tokenizer = ArticleTokenizer(folder / TOKENIZER)
    known = {
        f"<s>### title: {a['title']} ### description: {a['description']}</s>": (number, a)
        for number, a in enumerate(articles, start=1)
    }
    lines = []
    for shard in Manifest.read(folder).shards:
        with pa.memory_map(str(folder / shard.file)) as source:
            rows = pa.ipc.open_stream(source).read_all().to_pylist()
        for row, columns in enumerate(rows):
            start = 0
            for piece, length in enumerate(columns["seq_lengths"]):
                text = tokenizer.decode(columns["input_ids"][start : start + length])
                number, article = known[text]
                identity = article_id(article["url"], article["title"], article["description"])
                place = {"id": identity, "place": f"articles.jsonl:{number}"}
                lines.append({**place, "shard": shard.file, "rows": [row], "pieces": [piece]})
                start += length
    return lines
