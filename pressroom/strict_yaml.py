"""YAML and key=value overrides -> one frozen dataclass, with every error at once.

A file is read by YAML 1.2's core rules (`no` is text, `2e-4` a number), each key remembers its
line, and pydantic checks the values strictly. Knows nothing of what the sections mean: the
dataclass brings its own rules.
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from pressroom.console import UserError

T = TypeVar("T")
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


class _Source:
    """A tree of plain values, where each key came from, and what is wrong so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}
        self.problems: list[tuple[str, str]] = []

    def parse(self, text: str, name: str, at: Key = (), place: str | None = None) -> Any:
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
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)


def dotted(key: Key) -> str:
    """`("data", "articles", "0")` -> `data.articles[0]`."""
    return "".join(f"[{k}]" if k.isdigit() else f".{k}" for k in key).removeprefix(".")


def known_keys(cls: Any, before: Key = ()) -> Iterator[Key]:
    """Every key that a dataclass of dataclasses takes, sections first."""
    for name, field in cls.__pydantic_fields__.items():
        yield (*before, name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if is_dataclass(kind):
                yield from known_keys(kind, (*before, name))


def load(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a config: defaults, then the file, then `key=value` overrides.

    Args:
        cls: A pydantic dataclass. Its optional `rules` are functions whose parameters name the
            sections that they compare, and which yield (dotted key, what is wrong); its optional
            `other_names` say what a key is called elsewhere.
        path: The YAML file.
        overrides: `section.key=value`, the value written in YAML.

    Raises:
        UserError: Names every problem as `file:line: key: what is wrong`.
    """
    source = _Source(str(path))
    tree = _read(source, path, overrides)
    values: dict[str, Any] = {}
    for name, field in cast(Any, cls).__pydantic_fields__.items():
        if name not in tree:
            if field.is_required():
                source.problems.append((source.name, f"{name}: is required"))
            else:
                values[name] = field.get_default(call_default_factory=True)
            continue
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
            values[name] = adapter.validate_json(json.dumps(tree[name]), strict=True)
        except ValidationError as error:
            source.problems.extend(_explain(cls, source, name, error))
    for name in tree.keys() - cast(Any, cls).__pydantic_fields__.keys():
        source.problems.append((source.where((name,)), _unknown(cls, (name,))))
    for rule in getattr(cls, "rules", ()):
        needs = inspect.signature(rule).parameters
        if needs.keys() <= values.keys():
            for key, message in rule(**{n: values[n] for n in needs}):
                source.problems.append((source.where(tuple(key.split("."))), f"{key}: {message}"))
    if source.problems:
        ordered = sorted(dict.fromkeys(source.problems), key=lambda p: _line_number(p[0]))
        raise UserError("\n".join(f"{where}: {message}" for where, message in ordered))
    return cls(**values)


def _read(source: _Source, path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    tree = source.parse(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}:1: must be a mapping of `key: value`")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"command line: {override!r} is not of the form key=value")
        key = tuple(name.strip().split("."))
        branch: Any = tree
        for part in key[:-1]:
            if not isinstance(branch.get(part), dict):
                branch[part] = {}
            branch = branch[part]
        for stale in [k for k in source.places if k[: len(key)] == key]:
            del source.places[stale]
        branch[key[-1]] = source.parse(value, name, key, "command line")
        source.places[key] = "command line"
    return tree


def _explain(
    cls: Any, source: _Source, section: str, error: ValidationError
) -> Iterator[tuple[str, str]]:
    """A pydantic error -> (place, `key: what is wrong`), one for each key."""
    wrong: dict[Key, tuple[Any, list[str]]] = {}
    for item in error.errors():
        key = (section, *map(str, item["loc"]))
        context, given = item.get("ctx", {}), item["input"]
        if item["type"] == "unexpected_keyword_argument":
            yield source.where(key), _unknown(cls, key)
        elif item["type"] == "missing":
            yield source.where(key), f"{dotted(key)}: is required"
        elif item["type"] == "rule":
            for name, message in context["found"]:
                yield source.where((*key, name)), f"{dotted((*key, name))}: {message}"
        elif item["type"] == "literal_error" and key in source.places:
            hint = _did_you_mean(str(given), re.findall(r"'([^']*)'", context["expected"]))
            message = f"{given!r} is not one of {context['expected']}{hint}"
            yield source.where(key), f"{dotted(key)}: {message}"
        else:
            # A union's errors name the member that was tried: the key is what the file holds.
            while key not in source.places and len(key) > 1:
                key = key[:-1]
            message = item["msg"].replace("Input should be", "must be").partition(", input")[0]
            wrong.setdefault(key, (given, []))[1].append(message[:1].lower() + message[1:])
    for key, (given, messages) in wrong.items():
        quoted = isinstance(given, str) and _is_number(given) and "number" in messages[0]
        note = " (quoted: text, not a number)" if quoted else ""
        told = f"{' or '.join(dict.fromkeys(messages))}, not {json.dumps(given)}{note}"
        yield source.where(key), f"{dotted(key)}: {told}"


def _unknown(cls: Any, key: Key) -> str:
    known = list(known_keys(cls))
    siblings = [k[-1] for k in known if k[:-1] == key[:-1]]
    name = getattr(cls, "other_names", {}).get(key[-1], key[-1])
    elsewhere = [dotted(k) for k in known if k[-1] == name]
    hint = f"; did you mean {elsewhere[0]}?" if elsewhere else _did_you_mean(key[-1], siblings)
    return f"{dotted(key)}: unknown key{hint}"


def _did_you_mean(word: str, candidates: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line_number(place: str) -> int:
    tail = place.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0
