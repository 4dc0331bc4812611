"""The dataset's manifest: what data preparation writes, and what training reads and checks.

A dataset lies in `data/NAME-HASH/`, the hash over everything that decides its bytes: the recipe
sections that preparation reads, the tokenizer, the articles. Knows nothing of how rows are made.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pressroom import prompts, sources
from pressroom.console import UserError
from pressroom.files import home, publish_json, sha256_file, sha256_json
from pressroom.recipe import Recipe

FORMAT_VERSION = 2
"""Raised whenever the same input would give other rows."""
SPLITS = ("train", "held_out")
IGNORE = -100
"""The label of a token that carries no loss."""
INDEX = "index.arrow"
"""Which article is where: its `id`, `place` (`file:line`), `shard` (a file) and `rows` in that."""
TOKENIZER = "tokenizer"
"""The folder of a dataset that holds the tokenizer it was made with."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Arrow file."""

    split: str
    file: str
    rows: int
    tokens: int
    trained_tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset was made from, and what is in it."""

    key: str
    spec: dict[str, Any]
    """What decided the rows, by dotted recipe key."""
    articles: dict[str, str]
    """Article file -> sha256."""
    counts: dict[str, Any]
    """Articles read, in each split, and rejected by cause: read = all the others."""
    packing: dict[str, float]
    """Split -> tokens over the room of all rows."""
    shards: tuple[Shard, ...]
    files: dict[str, str]
    """Every other file of the dataset -> sha256."""
    versions: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a dataset.

        Raises:
            UserError: The folder is not a dataset of this version.
        """
        path = folder / "manifest.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "shards": tuple(Shard(**s) for s in values["shards"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: not a dataset's manifest ({error}); delete the folder and run "
                "`pressroom prep`"
            ) from None

    def write(self, folder: Path) -> None:
        """Write `manifest.json`: the last file of a dataset."""
        publish_json(folder / "manifest.json", asdict(self))

    def rows(self, split: str) -> int:
        """Packed rows of a split."""
        return sum(shard.rows for shard in self.shards if shard.split == split)


def article_files(recipe: Recipe) -> dict[str, Path]:
    """The files that `data.articles` names, in the order given, each once.

    Returns:
        Name -> path, as `sources.find` names them.

    Raises:
        UserError: Naming every entry that matches nothing and every empty file.
    """
    files: dict[str, Path] = {}
    problems = []
    for entry in recipe.data.articles:
        try:
            files.update(sources.find(entry))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return files


def spec_of(recipe: Recipe, tokenizer: str) -> dict[str, Any]:
    """Everything but the articles that decides a dataset's rows, by dotted key.

    Columns that are called as our fields are left out, so that a field more changes no key.
    """
    data = recipe.to_dict()["data"]
    columns = {k: v for k, v in data["columns"].items() if v != k}
    read = {k: v for k, v in data.items() if k != "articles"} | {"columns": columns}
    return {
        **flat(read, "data."),
        "prompt.format": recipe.prompt.format,
        "prompt.train_on": recipe.prompt.trains_on,
        "sequence_length": recipe.sequence_length,
        "tokenizer": tokenizer,
        "prompt format version": prompts.VERSION,
        "dataset format version": FORMAT_VERSION,
    }


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections by dotted key.

    >>> flat({"a": {"b": 1}, "c": [2]}, "data.")
    {'data.a.b': 1, 'data.c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def hash_articles(files: dict[str, Path]) -> dict[str, str]:
    """Name of an article file -> sha256 of its content."""
    return {name: sha256_file(path) for name, path in files.items()}


def dataset_key(spec: dict[str, Any], articles: dict[str, str]) -> str:
    """The hash in a dataset's name: 12 hex digits."""
    return sha256_json([spec, list(articles.values())])[:12]


def dataset_folder(name: str, key: str) -> Path:
    """`data/NAME-HASH` under home."""
    return home() / "data" / f"{name}-{key}"


def find(recipe: Recipe, spec: dict[str, Any]) -> Path:
    """The dataset of a recipe and the articles as they are now.

    Raises:
        UserError: There is none; names how the newest of the same name differs.
    """
    articles = hash_articles(article_files(recipe))
    folder = dataset_folder(recipe.name, dataset_key(spec, articles))
    if folder.is_dir():
        return folder
    message = f"{folder}: no such dataset; make it with `pressroom prep`"
    others = (home() / "data").glob(f"{recipe.name}-*/manifest.json")
    newest = max(others, key=lambda path: path.stat().st_mtime, default=None)
    if newest:
        manifest = Manifest.read(newest.parent)
        differences = _differences(manifest.spec, spec)
        if manifest.articles != articles:
            differences.append("  the articles are others")
        message += f"\n{newest.parent} is not it:\n" + "\n".join(differences)
    raise UserError(message)


def newest(recipe: Recipe) -> Manifest | None:
    """The newest dataset of a recipe's name that was made as the recipe says.

    From whatever articles and tokenizer: good for an estimate, not for training.
    """
    made = (home() / "data").glob(f"{recipe.name}-*/manifest.json")
    for path in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True):
        manifest = Manifest.read(path.parent)
        if not _differences(manifest.spec, spec_of(recipe, manifest.spec.get("tokenizer", ""))):
            return manifest
    return None


def check(folder: Path, spec: dict[str, Any]) -> Manifest:
    """Read a dataset's manifest and hold it against a recipe.

    Raises:
        UserError: Naming every difference.
    """
    manifest = Manifest.read(folder)
    differences = _differences(manifest.spec, spec)
    if differences:
        raise UserError(
            f"{folder} does not match the recipe; make another with `pressroom prep`:\n"
            + "\n".join(differences)
        )
    return manifest


def _differences(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [
        f"  {key}: the dataset has {_told(made, key)}, the recipe {_told(wanted, key)}"
        for key in sorted(made.keys() | wanted.keys())
        if made.get(key) != wanted.get(key)
    ]


def _told(spec: dict[str, Any], key: str) -> str:
    return repr(spec[key]) if key in spec else "its default"


def verify_shards(folder: Path, manifest: Manifest, splits: tuple[str, ...] = SPLITS) -> None:
    """Hold the bytes of every shard of some splits against its sha256.

    A cut Arrow stream reads as a shorter, valid data set, and a flipped bit passes unseen.

    Raises:
        UserError: Naming every shard that is missing or damaged.
    """
    damaged = [
        f"  {shard.file}: {'damaged' if (folder / shard.file).is_file() else 'missing'}"
        for shard in manifest.shards
        if shard.split in splits
        if not (folder / shard.file).is_file() or sha256_file(folder / shard.file) != shard.sha256
    ]
    if damaged:
        raise UserError(f"{folder}: delete it and run `pressroom prep`:\n" + "\n".join(damaged))
