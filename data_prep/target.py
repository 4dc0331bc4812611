"""The dataset that a user means by DATASET|RECIPE. Knows nothing of what is in it."""

import difflib
from pathlib import Path

from pressroom import dataset
from pressroom.base_model import model_folder
from pressroom.console import UserError
from pressroom.files import home
from pressroom.recipe import Recipe
from pressroom.spec import spec_of
from pressroom.tokenizer import ArticleTokenizer

_MARKS = (dataset.MANIFEST, "dataset_dict.json")
"""Files of a dataset: one that has lost a file is one too."""


def find_dataset(target: str, overrides: tuple[str, ...]) -> Path:
    """The folder of a dataset: by its path or its name, or of the articles and the recipe named.

    Raises:
        UserError: There is none, or the recipe cannot be used.
    """
    folder = _folder(target)
    if folder and overrides:
        raise UserError(f"{overrides[0]}: {target} is a dataset; key=value goes with a recipe")
    if folder:
        return folder
    recipe = Recipe.load(target, overrides)
    tokenizer = ArticleTokenizer(model_folder(recipe.model, weights=False))
    return dataset.find(recipe, spec_of(recipe, tokenizer.fingerprint))


def _folder(target: str) -> Path | None:
    """The dataset of that name; none where a recipe is meant."""
    for folder in (Path(target), home() / target, home() / "data" / target):
        if any((folder / name).is_file() for name in _MARKS):
            return folder
    if Path(target).is_file():
        return None
    made = sorted((home() / "data").glob(f"*/{dataset.MANIFEST}"))
    names = [path.parent.name for path in made]
    close = difflib.get_close_matches(Path(target).name, names, n=1, cutoff=0.7)
    if close or "/" in target:
        hint = f"; did you mean {home() / 'data' / close[0]}?" if close else ""
        raise UserError(f"{target}: no dataset and no recipe file{hint}")
    return None
