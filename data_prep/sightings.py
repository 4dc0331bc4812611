"""Where articles are: looked up in a dataset's index and its rejects, and in the runs made of it.

What is looked through is held against its checksum first: a damaged index would hide an article.
Knows nothing of how anything is told.
"""

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pressroom import seal
from pressroom.console import UserError
from pressroom.dataset import INDEX, MANIFEST, REJECTS, Manifest
from pressroom.files import home
from pressroom.index import find, read_index
from pressroom.runs import every_run
from pressroom.standing import standing


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One place in which an article was read, and what a dataset made of it."""

    id: str
    dataset: Path
    state: str
    """`train`, `held_out` or `rejected`."""
    place: str
    """`file:line` of the articles."""
    shard: str = ""
    rows: tuple[int, ...] = ()
    cause: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run that was trained on a dataset."""

    run: Path
    standing: str
    """As `pressroom runs` has it: finished, running, failed, ..."""
    models: tuple[Path, ...]
    """Its adapter and its merged model, so far as they are there."""


def datasets() -> list[Path]:
    """All datasets in `data/`: also one whose manifest is gone, which its name tells."""
    data = home() / "data"
    found = {path.parent for path in data.glob(f"[!.]*/{MANIFEST}")}
    return sorted(found | {path for path in data.glob(f"[!.]*-{'[0-9a-f]' * 12}") if path.is_dir()})


def sightings(folder: Path, ids: Sequence[str]) -> list[Sighting]:
    """Where some articles are in a dataset, in the order of its index, then of its rejects.

    Raises:
        UserError: It cannot be looked through.
    """
    manifest = Manifest.read(folder)
    if INDEX not in manifest.files:
        raise UserError(f"{folder}: has no {INDEX}, as older datasets do not")
    sums = {name: manifest.files[name] for name in (INDEX, REJECTS) if name in manifest.files}
    if damaged := seal.damages(folder, sums):
        told = ", ".join(f"{name} is {what}" for name, what in damaged.items())
        raise UserError(f"{folder}: {told}")
    found = [
        Sighting(
            id=line["id"],
            dataset=folder,
            state=line["shard"].partition("/")[0],
            place=line["place"],
            shard=line["shard"],
            rows=tuple(line["rows"]),
        )
        for line in find(read_index(folder), ids)
    ]
    return found + [
        Sighting(
            id=line["id"],
            dataset=folder,
            state="rejected",
            place=line["place"],
            cause=line["cause"],
            detail=line["detail"],
        )
        for line in _rejects(folder / REJECTS, ids)
    ]


def _rejects(path: Path, ids: Sequence[str]) -> list[dict[str, str]]:
    """The lines of rejects.jsonl that are of some articles; the others are not parsed."""
    if not path.is_file() or not path.stat().st_size:
        return []
    lines = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for wanted in map(str.encode, ids):
            hit = text.find(wanted)
            while hit >= 0:
                start, end = text.rfind(b"\n", 0, hit) + 1, text.find(b"\n", hit)
                end = end if end >= 0 else len(text)
                lines[start] = json.loads(text[start:end])
                hit = text.find(wanted, end)
    return [line for line in lines.values() if line.get("id") in ids]


def trainings() -> tuple[dict[Path, list[Training]], list[str]]:
    """The runs of each dataset, by its resolved folder, newest first.

    Returns:
        They, and in words the runs of which nobody can tell what they were trained on.
    """
    found: dict[Path, list[Training]] = {}
    unknown = []
    for run in every_run():
        if not run.environment.is_file():
            continue  # has trained on nothing yet
        try:
            folder = run.dataset
        except UserError as error:
            unknown.append(f"{error}")
            continue
        except (KeyError, TypeError):
            unknown.append(f"{run.environment}: does not say which dataset")
            continue
        models = tuple(path for path in (run.adapter, run.merged) if path.is_dir())
        training = Training(run=run.path, standing=standing(run), models=models)
        found.setdefault(folder.resolve(), []).append(training)
    return found, unknown
