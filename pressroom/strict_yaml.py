"""YAML and key=value overrides -> one frozen dataclass, with every error at once.

A file is read by YAML 1.2's core rules (`no` is text, `2e-4` a number), each key remembers its
line, and pydantic checks the values strictly. Knows nothing of what the sections mean: the
dataclass brings its own rules.
"""

import difflib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import TypeAdapter, ValidationError

from pressroom.console import UserError
from pressroom.yaml_source import Key, Source, dotted

T = TypeVar("T")

_WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dataclass_type": "must be a section, `key: value` below it",
    "date_from_datetime_parsing": "must be a date, YYYY-MM-DD",
    "date_parsing": "must be a date, YYYY-MM-DD",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be letters, digits, `.`, `_` and `-` only",
}
"""pydantic's kinds of errors in a user's words; others keep pydantic's."""


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
    source = Source(str(path))
    tree = source.read(path, overrides)
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
    for name in [n for n in tree if n not in cast(Any, cls).__pydantic_fields__]:
        source.problems.append((source.where((name,)), _unknown(cls, (name,))))
    for rule in getattr(cls, "rules", ()):
        needs = inspect.signature(rule).parameters
        if needs.keys() <= values.keys():
            for name, message in rule(**{n: values[n] for n in needs}):
                key = tuple(name.split("."))
                source.problems.append((source.where(key), f"{dotted(key)}: {message}"))
    if source.problems:
        ordered = sorted(dict.fromkeys(source.problems), key=lambda p: _line_number(p[0]))
        raise UserError("\n".join(f"{where}: {message}" for where, message in ordered))
    return cls(**values)


def _explain(
    cls: Any, source: Source, section: str, error: ValidationError
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
            words = item["msg"].replace("Input should be", "must be").partition(", input")[0]
            message = _WORDS.get(item["type"], words[:1].lower() + words[1:])
            wrong.setdefault(key, (given, []))[1].append(message)
    for key, (given, messages) in wrong.items():
        note = ""
        if isinstance(given, str) and _is_number(given) and "number" in messages[0]:
            note = " (quoted: text, not a number)"
        elif isinstance(given, str) and "must be a list" in messages:
            note = f": [{given}]"
        elif isinstance(given, int | float) and messages == ["must be text"]:
            note = f': "{json.dumps(given)}"'
        kinds = dict.fromkeys(message.removeprefix("must be ") for message in messages)
        told = f"must be {' or '.join(kinds)}" if len(kinds) > 1 else messages[0]
        shown = json.dumps(given, ensure_ascii=False)
        seen = "" if given in ([], "", {}) else f", not {shown}{note}"
        yield source.where(key), f"{dotted(key)}: {told}{seen}"


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
