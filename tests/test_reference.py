"""`docs/recipe.md` and `docs/cluster.md` are what docstrings say; `make docs` writes them anew."""

import os
import types
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic_core import PydanticUndefined

from pressroom.cluster import Cluster
from pressroom.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "recipe.md": (
        Recipe,
        "# Keys of a recipe\n\nMade by `make docs` from the docstrings of `pressroom/sections.py`, "
        "`pressroom/train_sections.py` and\n`pressroom/recipe.py`. Any key is overridden on the "
        "command line: `section.key=value`.",
    ),
    "cluster.md": (
        Cluster,
        "# Keys of a cluster file\n\nMade by `make docs` from the docstrings of "
        "`pressroom/cluster.py`. One file describes a cluster for every\nrecipe; "
        "`slurm/cluster.example.yaml` is one to start from.",
    ),
}
WORDS = {int: "whole number", float: "number", str: "text", bool: "true, false"}


def values(annotation: Any) -> str:
    """What a key takes, in a user's words."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {values(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"{values(get_args(annotation)[1])} by name"
    if annotation is types.NoneType:
        return "`null`"
    members = get_args(annotation)
    if get_origin(annotation) in (types.UnionType, getattr(types, "UnionType", None)) or (
        str(get_origin(annotation)) == "typing.Union"
    ):
        return " or ".join(values(member) for member in members)
    if members and hasattr(annotation, "__metadata__"):
        return values(members[0])
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default(field: Any) -> str:
    """A key's default as it would be written."""
    if field.default is PydanticUndefined:
        return f"`{field.default_factory()}`" if field.default_factory else "required"
    value = field.default
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    written = {None: "null", False: "false", True: "true"}
    return f"`{written[value] if value is None or value is False or value is True else value}`"


def row(key: str, field: Any) -> str:
    """A line of the table."""
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    assert meaning, f"{key} has no docstring"
    return f"| `{key}` | {values(field.annotation)} | {default(field)} | {meaning} |"


def section_of(annotation: Any) -> Any:
    """The dataclass in an annotation, or None."""
    return next((k for k in (annotation, *get_args(annotation)) if is_dataclass(k)), None)


def page(config: Any, title: str) -> str:
    """The reference of all keys of a config."""
    head = "| key | values | default | meaning |\n|---|---|---|---|"
    fields = config.__pydantic_fields__
    plain = [row(name, f) for name, f in fields.items() if section_of(f.annotation) is None]
    parts = [title, "\n".join([head, *plain])]
    for name, field in fields.items():
        kind = section_of(field.annotation)
        if kind is None:
            continue
        note = (
            " `null`: nothing is quantized." if types.NoneType in get_args(field.annotation) else ""
        )
        lines = [f"## {name}\n\n{(kind.__doc__ or '').splitlines()[0]}{note}\n", head]
        for key, inner in kind.__pydantic_fields__.items():
            deeper = section_of(inner.annotation)
            rows = deeper.__pydantic_fields__.items() if deeper else [(None, inner)]
            lines += [row(f"{key}.{k}" if k else key, f) for k, f in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_is_what_the_docstrings_say(name: str) -> None:
    wanted = page(*PAGES[name])
    if os.environ.get("WRITE_DOCS"):
        (DOCS / name).write_text(wanted, encoding="utf-8")
    assert (DOCS / name).read_text(encoding="utf-8") == wanted
