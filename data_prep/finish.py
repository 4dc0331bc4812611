"""The last step: shards and verdicts -> a dataset with its manifest, which appears as a whole.

In = out: every record that was read stands in a split or in rejects.jsonl. Knows nothing of tokens.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.articles import Reject
from data_prep.job import LIBRARIES, Job
from data_prep.shards import describe, describe_split
from pressroom import dataset, index
from pressroom.console import UserError
from pressroom.dataset import SPLITS, Manifest, Shard
from pressroom.files import replace_folder, sha256_file, sha256_json
from pressroom.tokenizer import ArticleTokenizer

_HELD_OUT = ("id", "title", "description", "category", "source")


@dataclass(frozen=True)
class Packed:
    """A shard that is written, and what is in it."""

    split: str
    folder: Path
    rows: int
    tokens: int
    trained_tokens: int
    sha256: str
    rejects: tuple[Reject, ...]

    def write(self) -> None:
        """Leave in its folder what a later step reads."""
        told = asdict(self)
        del told["folder"]
        (self.folder / "packed.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Packed":
        """What `write` has left."""
        told = json.loads((folder / "packed.json").read_text("utf-8"))
        rejects = tuple(Reject(**reject) for reject in told.pop("rejects"))
        return cls(folder=folder, rejects=rejects, **told)

    @property
    def shard(self) -> Path:
        """The Arrow file."""
        return self.folder / "shard.arrow"

    @property
    def index(self) -> Path:
        """A row for each article of the shard: id, place, rows."""
        return self.folder / "index.arrow"


def finish(
    folder: Path,
    job: Job,
    tokenizer: ArticleTokenizer,
    records: Iterable[tuple[pa.Table, pa.Table]],
    packed: Sequence[Packed],
) -> None:
    """Publish a dataset.

    Args:
        folder: Where it is put together; on the disk on which it will be.
        job: Which.
        tokenizer: It is kept beside the rows.
        records: Of each portion its records and their verdicts.
        packed: The shards, in order.

    Raises:
        UserError: A split has not one article.
    """
    folder.mkdir()
    late = {reject.place: reject for unit in packed for reject in unit.rejects}
    read, rejected = _write_records(folder, records, late)
    placed = list(_placed(packed))
    counts: dict[str, Any] = {"read": read} | dict.fromkeys(SPLITS, 0)
    with _stream(folder / dataset.INDEX, index.SCHEMA) as sink:
        for unit, file in placed:
            counts[unit.split] += _write_index(sink, unit, file)
    for split in SPLITS:
        if not counts[split]:  # what `decide` left to it was rejected when it was packed
            causes = ", ".join(f"{count:,} {cause}" for cause, count in rejected.most_common())
            raise UserError(f"data: not one article is left for the {split} split: {causes}")
    counts["rejected"] = dict(rejected.most_common())
    assert read == sum(counts[split] for split in SPLITS) + rejected.total()
    shards = _take_shards(folder, placed)
    describe(folder)
    tokenizer.save(folder / dataset.TOKENIZER)
    names = {shard.file for shard in shards}
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    Manifest(
        key=job.key,
        spec=job.spec,
        articles=job.hashes,
        counts=counts,
        packing=_packing(shards, job.recipe.sequence_length),
        shards=tuple(shards),
        files={name: sha256_file(path) for name, path in files.items() if name not in names},
        versions={name: version(name) for name in LIBRARIES},
    ).write(folder)
    replace_folder(folder, job.folder)


def _placed(packed: Sequence[Packed]) -> Iterator[tuple[Packed, str]]:
    """Each shard with its name in the dataset."""
    for split in SPLITS:
        units = [unit for unit in packed if unit.split == split]
        for number, unit in enumerate(units):
            yield unit, f"{split}/data-{number:05d}-of-{len(units):05d}.arrow"


def _write_records(
    folder: Path, records: Iterable[tuple[pa.Table, pa.Table]], late: dict[str, Reject]
) -> tuple[int, Counter[str]]:
    """Write the rejects, and the held-out articles as text.

    Args:
        folder: The dataset's.
        records: Of each portion its records and their verdicts.
        late: Articles that were rejected when they were packed, by place.

    Returns:
        How many records there are, and how many were rejected for which cause.
    """
    read = 0
    causes: Counter[str] = Counter()
    with (
        (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects,
        (folder / "held_out.jsonl").open("w", encoding="utf-8") as held_out,
    ):
        for table, verdicts in records:
            read += len(table)
            for reject in _rejects(table, verdicts, late):
                causes[reject.cause] += 1
                rejects.write(_line(asdict(reject)))
            is_held = verdicts["side"].to_numpy() == SPLITS.index("held_out")
            for row in table.filter(pa.array(is_held)).select(["place", *_HELD_OUT]).to_pylist():
                if row.pop("place") not in late:
                    held_out.write(_line(row))
    return read, causes


def _rejects(table: pa.Table, verdicts: pa.Table, late: dict[str, Reject]) -> Iterator[Reject]:
    places, ids = table["place"].to_pylist(), table["id"].to_pylist()
    causes, details = verdicts["cause"].to_pylist(), verdicts["detail"].to_pylist()
    for place, id_, cause, detail in zip(places, ids, causes, details, strict=True):
        if cause is not None:
            yield Reject(place, cause, detail, id_ or "")
        elif place in late:
            yield late[place]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _stream(path: Path, schema: pa.Schema) -> Iterator[Any]:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer


def _write_index(sink: Any, unit: Packed, file: str) -> int:
    """Say which row has which article of a shard; how many there are."""
    with pa.memory_map(str(unit.index)) as source:
        table = pa.ipc.open_file(source).read_all()
    names = pa.array(np.full(len(table), file, dtype=object), pa.string())
    sink.write_table(table.add_column(2, "shard", names).cast(index.SCHEMA))
    return len(table)


def _take_shards(folder: Path, placed: Sequence[tuple[Packed, str]]) -> list[Shard]:
    """Give shards their place in a dataset's folder."""
    shards = []
    for split in SPLITS:
        (folder / split).mkdir()
        ours = [(unit, file) for unit, file in placed if unit.split == split]
        for unit, file in ours:
            try:
                os.link(unit.shard, folder / file)
            except OSError:  # not every disk has links
                shutil.copyfile(unit.shard, folder / file)
            shards.append(
                Shard(
                    split=split,
                    file=file,
                    rows=unit.rows,
                    tokens=unit.tokens,
                    trained_tokens=unit.trained_tokens,
                    sha256=unit.sha256,
                )
            )
        fingerprint = sha256_json([unit.sha256 for unit, _ in ours])[:16]
        describe_split(folder / split, [Path(file).name for _, file in ours], fingerprint)
    return shards


def _packing(shards: Sequence[Shard], sequence_length: int) -> dict[str, float]:
    """Split -> tokens over the room of all rows."""
    found = {}
    for split in SPLITS:
        ours = [shard for shard in shards if shard.split == split]
        room = sum(shard.rows for shard in ours) * sequence_length
        found[split] = sum(shard.tokens for shard in ours) / room
    return found
