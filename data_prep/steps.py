"""The steps of data preparation, and which of each other's files they read.

    plan     one unit    article files -> portions of them
    scan     a portion   records -> cleaned articles and rejects, each by itself
    decide   one unit    -> duplicates, the held-out split, which articles share a shard
    pack     a shard     articles -> token ids -> packed rows
    finish   one unit    -> data/NAME-KEY/, complete

What is in a unit's files follows from the recipe, the articles and the tokenizer. Knows nothing of
who does which unit.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.decide import (
    PackUnit,
    decide,
    pack_units,
    require_good_files,
    require_splits,
    text_sizes,
)
from data_prep.finish import Packed, finish
from data_prep.job import Job
from data_prep.portions import portions
from data_prep.readers import Portion
from data_prep.scan import scan
from data_prep.shards import write_shard
from data_prep.tokens import require_boundary
from data_prep.work import Step, unit_folder
from pressroom.base_model import model_folder
from pressroom.dataset import SPLITS
from pressroom.tokenizer import ArticleTokenizer


class Steps:
    """The steps of one job, as one worker sees them."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def in_order(self) -> Iterator[Step]:
        """Each step when those before it are done: they tell how many units it has."""
        yield Step(self._job.units / "plan", 1, self._plan)
        yield Step(self._job.units / "scan", len(self._portions), self._scan, "portion")
        yield Step(self._job.units / "decide", 1, self._decide)
        yield Step(self._job.units / "pack", len(self._pack_units), self._pack, "shard")
        yield Step(self._job.units / "finish", 1, self._finish)

    def _done(self, step: str, number: int) -> Path:
        return unit_folder(self._job.units / step, number)

    @cached_property
    def _tokenizer(self) -> ArticleTokenizer:
        return ArticleTokenizer(model_folder(self._job.recipe.model, weights=False))

    def _plan(self, number: int, folder: Path) -> None:
        found = [
            (name, asdict(portion))
            for name, path in self._job.files.items()
            for portion in portions(path, self._job.portion_bytes)
        ]
        _write_json(folder / "portions.json", found)

    @cached_property
    def _portions(self) -> list[tuple[str, Portion]]:
        found = _read_json(self._done("plan", 0) / "portions.json")
        return [(name, Portion(**portion)) for name, portion in found]

    def _scan(self, number: int, folder: Path) -> None:
        name, portion = self._portions[number]
        path, job = folder / "records.arrow", self._job
        scan(path, job.files[name], name, portion, job.recipe.data, job.takedown)
        job.require_unchanged(name)  # what was read is what the dataset's name says

    def _records(self, number: int) -> pa.Table:
        return _mapped(self._done("scan", number) / "records.arrow")

    def _decide(self, number: int, folder: Path) -> None:
        tables = [self._records(number) for number in range(len(self._portions))]
        require_good_files([name for name, _ in self._portions], tables)
        records = pa.concat_tables(tables)
        verdicts = decide(records, self._job.recipe.data)
        require_splits(records, verdicts)
        sides_R = verdicts["side"].to_numpy()
        used = records.select(["title", "description"]).filter(pc.greater_equal(sides_R, 0))
        require_boundary(used, self._job.recipe.prompt.format, self._tokenizer)
        _write_table(folder / "verdicts.arrow", verdicts)
        units = pack_units(sides_R, text_sizes(records), self._job.unit_bytes)
        _write_json(folder / "units.json", [asdict(unit) for unit in units])
        _write_json(folder / "bounds.json", [*accumulate(map(len, tables), initial=0)])

    @cached_property
    def _verdicts(self) -> list[tuple[int, pa.Table]]:
        """Of each portion the number of its first row among all, and the verdicts on its rows."""
        folder = self._done("decide", 0)
        all_of_them = _mapped(folder / "verdicts.arrow")
        bounds = pairwise(_read_json(folder / "bounds.json"))
        return [(first, all_of_them.slice(first, end - first)) for first, end in bounds]

    @cached_property
    def _pack_units(self) -> list[PackUnit]:
        return [PackUnit(**unit) for unit in _read_json(self._done("decide", 0) / "units.json")]

    def _pack(self, number: int, folder: Path) -> None:
        unit = self._pack_units[number]
        path = folder / "shard.arrow"
        written = write_shard(path, self._articles(unit), self._job.recipe, self._tokenizer)
        packed = Packed(
            split=SPLITS[unit.side],
            folder=folder,
            rows=written.rows,
            tokens=written.tokens,
            trained_tokens=written.trained_tokens,
            sha256=written.sha256,
            rejects=tuple(written.rejects),
        )
        packed.write()
        _write_table(packed.index, written.index)

    def _articles(self, unit: PackUnit) -> pa.Table:
        """What a shard is made of: id, title, description, place."""
        found = []
        for number, (first, verdicts) in enumerate(self._verdicts):
            start, stop = max(first, unit.start), min(first + len(verdicts), unit.stop)
            if start < stop:
                part = slice(start - first, stop - first)
                records = self._records(number).select(["id", "title", "description", "place"])
                found.append(records[part].filter(pc.equal(verdicts["side"][part], unit.side)))
        return pa.concat_tables(found)

    def _finish(self, number: int, folder: Path) -> None:
        records = (
            (self._records(number), verdicts) for number, (_, verdicts) in enumerate(self._verdicts)
        )
        packed = [Packed.read(self._done("pack", n)) for n in range(len(self._pack_units))]
        finish(folder / "dataset", self._job, self._tokenizer, records, packed)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
