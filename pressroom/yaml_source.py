"""YAML -> plain values, and where each of them came from.

YAML 1.2's core schema, no tags, no key twice. Knows nothing of which keys there are.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pressroom.console import UserError

Key = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core schema: no yes/no booleans, no octal, no dates, exponents without a dot."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )

_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": lambda text: int(text.replace("_", "")),
    "tag:yaml.org,2002:float": float,
}


class Source:
    """Where each key of a tree of plain values came from, and what is wrong so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}
        self.problems: list[tuple[str, str]] = []

    def read(self, path: Path, overrides: Sequence[str]) -> dict[str, Any]:
        """A file's values, those of `key=value` overrides in their places.

        Raises:
            UserError: The file cannot be read, or an override is none.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        tree = self.parse(text, str(path)) or {}
        if not isinstance(tree, dict):
            raise UserError(f"{path}:1: must be a mapping of `key: value`")
        seen = set()
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise UserError(f"command line: {override!r} is not of the form key=value")
            key = tuple(name.strip().split("."))
            if key in seen:
                self.problems.append(("command line", f"{dotted(key)}: given twice"))
            seen.add(key)
            self._override(tree, key, value)
        return tree

    def _override(self, tree: dict[str, Any], key: Key, value: str) -> None:
        branch: Any = tree
        for depth, part in enumerate(key[:-1], start=1):
            there = branch.get(part)
            if isinstance(there, str) and there != "auto":
                section = dotted(key[:depth])
                message = f"would undo {section}={there}; give {section}={{...}} as a whole"
                self.problems.append(("command line", f"{dotted(key)}: {message}"))
            if not isinstance(there, dict):
                branch[part] = {}
            branch = branch[part]
        for stale in [k for k in self.places if k[: len(key)] == key]:
            del self.places[stale]
        branch[key[-1]] = self.parse(value, dotted(key), key, "command line")
        self.places[key] = "command line"

    def parse(self, text: str, name: str, at: Key = (), place: str | None = None) -> Any:
        """One YAML text's value; `at` is the key that it belongs to.

        Raises:
            UserError: It is not YAML.
        """
        try:
            node = yaml.compose(text, _Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = place or (f"{name}:{mark.line + 1}" if mark else name)
            raise UserError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
        try:
            return None if node is None else self._value(node, at, name, place)
        except RecursionError:
            raise UserError(f"{place or name}: an alias inside what it stands for") from None

    def _value(self, node: yaml.Node, key: Key, name: str, place: str | None) -> Any:
        where = place or f"{name}:{node.start_mark.line + 1}"
        self.places.setdefault(key, where)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, name, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(v, (*key, str(i)), name, place) for i, v in enumerate(node.value)]
        convert = _SCALARS.get(node.tag)
        if convert is None:
            self.problems.append((where, f"{dotted(key)}: the tag {node.tag} is not allowed"))
            return None
        try:
            return convert(node.value)
        except ValueError as error:
            self.problems.append((where, f"{dotted(key)}: {error}"))
            return None

    def _mapping(self, node: yaml.MappingNode, key: Key, name: str, place: str | None) -> Any:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            inner = (*key, str(key_node.value))
            where = place or f"{name}:{key_node.start_mark.line + 1}"
            if inner[-1] in values:
                first = self.places[inner]
                self.problems.append((where, f"{dotted(inner)}: given twice, first at {first}"))
                continue
            self.places[inner] = where
            values[inner[-1]] = self._value(value_node, inner, name, place)
        return values

    def where(self, key: Key) -> str:
        """The place of a key, or else of the section that lacks it."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)


def dotted(key: Key) -> str:
    """`("data", "articles", "0")` -> `data.articles[0]`."""
    return "".join(f"[{k}]" if k.isdigit() else f".{k}" for k in key).removeprefix(".")
