"""A dataset to be made: its recipe, its articles, its name. Knows nothing of how it is made."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pressroom import dataset, takedown
from pressroom.base_model import model_folder
from pressroom.console import UserError
from pressroom.files import sha256_json
from pressroom.recipe import Recipe
from pressroom.spec import spec_of
from pressroom.tokenizer import ArticleTokenizer

LIBRARIES = ("pressroom", "tokenizers", "pyarrow", "ftfy", "nh3", "rensa", "py3langid")
"""Those whose versions may decide a dataset's bytes."""
_UNITS_VERSION = 1
"""Raised whenever the files of units change."""
UNIT_BYTES = 2**25
"""Of the text in a shard. A portion of a file has a quarter: no row depends on its size, and
workers end together."""


@dataclass(frozen=True)
class Job:
    """A dataset to be made."""

    recipe: Recipe
    spec: dict[str, Any]
    files: dict[str, Path]
    """Of articles, by name."""
    hashes: dict[str, str]
    """Their sha256, by name."""
    stamps: dict[str, tuple[int, int]]
    """Their size and time of change when they were hashed."""
    takedown: frozenset[str]
    """Ids of articles that must not be used."""
    unit_bytes: int = UNIT_BYTES

    @classmethod
    def of(cls, recipe: Recipe, unit_bytes: int = UNIT_BYTES) -> "Job":
        """What a recipe asks for, its articles as they are now.

        Raises:
            UserError: The articles or the tokenizer are missing.
        """
        tokenizer = ArticleTokenizer(model_folder(recipe.model, weights=False))
        listed = takedown.ids(recipe)
        spec = spec_of(recipe, tokenizer.fingerprint, listed)
        files = dataset.article_files(recipe)
        stamps = {name: _stamp(path) for name, path in files.items()}
        hashes = dataset.hash_articles(files)
        job = cls(recipe, spec, files, hashes, stamps, listed, unit_bytes)
        for name in files:
            job.require_unchanged(name)
        return job

    def require_unchanged(self, name: str) -> None:
        """See that a file of articles still is what was hashed.

        Raises:
            UserError: It has been written to.
        """
        if _stamp(self.files[name]) != self.stamps[name]:
            raise UserError(
                f"{name}: has changed while it was read: when nobody writes to it, give the same "
                "command again"
            )

    @property
    def portion_bytes(self) -> int:
        """Of a portion of a file."""
        return max(self.unit_bytes // 4, 1)

    @property
    def key(self) -> str:
        """The hash in the dataset's name."""
        return dataset.dataset_key(self.spec, self.hashes)

    @property
    def folder(self) -> Path:
        """Where the dataset will be."""
        return dataset.dataset_folder(self.recipe.name, self.key)

    @property
    def work(self) -> Path:
        """What those who work on it have of their own, until it is there."""
        return self.folder.with_name(f".{self.folder.name}.prep")

    @property
    def units(self) -> Path:
        """Where units of work lie: other versions, or names of files, have others."""
        versions = [version(name) for name in LIBRARIES]
        decides = [_UNITS_VERSION, versions, list(self.files), self.unit_bytes]
        return self.work / sha256_json(decides)[:8]

    @property
    def lock(self) -> Path:
        """Held by those who work on it."""
        return self.work / "lock"


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
