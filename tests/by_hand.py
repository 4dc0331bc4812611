"""Datasets changed by hand: rows that preparation would never write."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from conftest import invented_articles

from data_prep.prepare import prepare
from data_prep.shards import SCHEMA
from pressroom.dataset import IGNORE, Manifest
from pressroom.files import sha256_file

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
