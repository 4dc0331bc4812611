"""A dataset to be made: its recipe, its articles, its name. Knows nothing of how it is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom import dataset, takedown
from pressroom.base_model import model_folder
from pressroom.recipe import Recipe
from pressroom.spec import spec_of
from pressroom.tokenizer import ArticleTokenizer

UNIT_BYTES = 2**25
"""Of a portion of a file, and of the text in a shard."""


@dataclass(frozen=True)
class Job:
    """A dataset to be made."""

    recipe: Recipe
    spec: dict[str, Any]
    files: dict[str, Path]
    """Of articles, by name."""
    hashes: dict[str, str]
    """Their sha256, by name."""
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
        spec = spec_of(recipe, tokenizer.fingerprint)
        files = dataset.article_files(recipe)
        hashes = dataset.hash_articles(files)
        return cls(recipe, spec, files, hashes, takedown.ids(recipe), unit_bytes)

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
        """Where units of work lie until it is."""
        return self.folder.with_name(f".{self.folder.name}.prep")

    @property
    def lock(self) -> Path:
        """Held by those who work on it."""
        return self.work / "lock"
