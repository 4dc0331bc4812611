"""What decides a dataset's rows, besides its articles. Knows nothing of files of rows."""

from typing import Any

from pressroom import prompts, takedown
from pressroom.recipe import Recipe

FORMAT_VERSION = 3
"""Raised whenever the same input would give other rows, or another index."""
TAKEDOWN = "data.takedown"
"""The key under which a dataset says what was on the takedown list."""


def spec_of(recipe: Recipe, tokenizer: str, listed: frozenset[str] | None = None) -> dict[str, Any]:
    """Everything but the articles that decides a dataset's rows, by dotted key.

    Columns that are called as our fields are left out, so that a field more changes no key, and so
    is `data.fraction` where all articles are used. Of the takedown list its content counts,
    wherever it lies.

    Args:
        recipe: Of the dataset.
        tokenizer: Its fingerprint.
        listed: The takedown list, where it has been read already.

    Raises:
        UserError: The takedown list cannot be read.
    """
    data = recipe.to_dict()["data"] | {
        "takedown": takedown.told(takedown.ids(recipe) if listed is None else listed)
    }
    if data["fraction"] == 1:
        del data["fraction"]
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


def differences(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Say of each key that is not the same what both have."""
    return [
        f"  {key}: the dataset has {_told(made, key)}, the recipe {_told(wanted, key)}"
        for key in sorted(made.keys() | wanted.keys())
        if made.get(key) != wanted.get(key)
    ]


def _told(spec: dict[str, Any], key: str) -> str:
    return repr(spec[key]) if key in spec else "its default"
