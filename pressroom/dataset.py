"""The dataset's manifest: what data preparation writes, and what training reads and checks.

A dataset lies in `data/NAME-HASH/`, the hash over everything that decides its bytes: the recipe
sections that preparation reads, the tokenizer, the articles. Knows nothing of how rows are made,
nor of the bytes of its files: `pressroom/seal.py` holds those against the manifest.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pressroom import sources
from pressroom.console import UserError, log
from pressroom.files import home, publish_text, sha256_file, sha256_json
from pressroom.recipe import Recipe
from pressroom.spec import TAKEDOWN, differences, spec_of

SPLITS = ("train", "held_out")
IGNORE = -100
"""The label of a token that carries no loss."""
MANIFEST = "manifest.json"
INDEX = "index.arrow"
"""Which article is where: `id`, `place` (`file:line`), `shard` (a file), `rows` of it, `pieces`."""
HELD_OUT = "held_out.jsonl"
"""The held-out articles as text: `id`, `title`, `description`."""
REJECTS = "rejects.jsonl"
"""What did not become a row: its `place`, `cause`, `detail` and, where it was an article, `id`."""
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
            UserError: The folder is not a dataset of this version, or its manifest is not as it
                was written.
        """
        path = folder / MANIFEST
        mend = "delete the folder and run `pressroom prep`"
        try:
            text = path.read_bytes().decode()  # every byte counts, ends of lines too
            values = json.loads(text)
            checksum = values.pop("checksum", None)
            manifest = cls(**{**values, "shards": tuple(Shard(**s) for s in values["shards"])})
            is_as_written = text == manifest.sealed()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = "of another version of Pressroom" if isinstance(error, TypeError) else error
            raise UserError(f"{path}: not a dataset's manifest ({what}); {mend}") from None
        if checksum is None:
            raise UserError(f"{path}: has no checksum, as older datasets do not; {mend}")
        if not is_as_written:
            raise UserError(
                f"{path}: was changed after it was written: its checksum is not that of what it "
                f"says; put it back as it was, or {mend}"
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write `manifest.json`: the last file of a dataset."""
        publish_text(folder / MANIFEST, self.sealed())

    def sealed(self) -> str:
        """The text of `manifest.json`, byte for byte: all fields, and a checksum over them."""
        values = asdict(self)
        sealed = {**values, "checksum": sha256_json(values)}
        return json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"

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


def hash_articles(files: dict[str, Path]) -> dict[str, str]:
    """Name of an article file -> sha256 of its content."""
    return {
        name: _hashed(path, path.stat().st_mtime_ns, path.stat().st_size)
        for name, path in files.items()
    }


@lru_cache(maxsize=4096)
def _hashed(path: Path, modified: int, size: int) -> str:
    """Of a file as it is: read once, however many recipes one process asks about it for."""
    return sha256_file(path)


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
    for other, manifest in _made(recipe):
        found = differences(manifest.spec, spec)
        if manifest.articles != articles:
            found.append("  the articles are others")
        message += f"\n{other} is not it:\n" + "\n".join(found)
        break
    raise UserError(message)


def newest(recipe: Recipe) -> Manifest | None:
    """The newest dataset of a recipe's name that was made as the recipe says.

    From whatever articles and tokenizer: good for an estimate, not for training.
    """
    for _, manifest in _made(recipe):
        if not differences(manifest.spec, spec_of(recipe, manifest.spec.get("tokenizer", ""))):
            return manifest
    return None


def _made(recipe: Recipe) -> Iterator[tuple[Path, Manifest]]:
    """The datasets of a recipe's name, newest first; of those that cannot be read, none."""
    manifests = (home() / "data").glob(f"{recipe.name}-*/{MANIFEST}")
    for path in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UserError):
            yield path.parent, Manifest.read(path.parent)


def check(folder: Path, spec: dict[str, Any]) -> Manifest:
    """Read a dataset's manifest and hold it against a recipe.

    A takedown list that has changed since is for the next dataset: what is in training goes on.

    Raises:
        UserError: Naming every other difference.
    """
    manifest = Manifest.read(folder)
    listed = manifest.spec.get(TAKEDOWN)
    if listed != spec[TAKEDOWN]:
        log.warning(
            "%s: made when the takedown list was %s; now it is %s: `pressroom prep` makes another, "
            "`pressroom trace` says what has seen an article",
            *(folder, listed, spec[TAKEDOWN]),
        )
    found = differences(manifest.spec, spec | {TAKEDOWN: listed})
    if found:
        raise UserError(
            f"{folder} does not match the recipe; make another with `pressroom prep`:\n"
            + "\n".join(found)
        )
    return manifest
