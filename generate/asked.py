"""What a user asks to be written: prompts and titles, from arguments, a file or standard input.

Knows nothing of models.
"""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.console import UserError
from pressroom.samples import Style

SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of characters: JSON can write them, and nothing else takes them."""
_OBJECT = re.compile(rb'(\xef\xbb\xbf)?\s*\{\s*"')
"""Where JSON lines begin."""
_SHOWN = 5
"""Problems of a file that are told."""


@dataclass(frozen=True)
class Asked:
    """One text that is asked for."""

    id: str | int
    """The user's own, else its place or line; its random numbers follow from it."""
    prompt: str
    where: str
    """For messages: `prompts.txt:3`."""
    title: str | None = None

    @property
    def key(self) -> str:
        """The id as text."""
        return str(self.id)


def of_arguments(prompts: Sequence[str], titles: Sequence[str], style: Style) -> list[Asked]:
    """Prompts, as they stand, and then titles."""
    asked = [Asked(place, text, f"prompt {place}") for place, text in enumerate(prompts, 1)]
    for place, title in enumerate(titles, len(prompts) + 1):
        asked.append(_of_title(place, title, f"title {title!r}", style))
    return asked


def of_file(path: Path, style: Style) -> list[Asked]:
    """The prompts of a .txt, a line each; the prompts or titles of a .jsonl.

    Raises:
        UserError: It cannot be read, or has nothing in it; with every line that is wrong.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"--file {path}: must end in .txt or .jsonl")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(f"--file {path}", path, error) from None
    return _of_lines(content, str(path), style, path.suffix == ".jsonl")


def of_input(content: bytes, style: Style) -> list[Asked]:
    """Those of standard input: JSON lines where the first one is an object, else a prompt a line.

    Raises:
        UserError: As of a file.
    """
    return _of_lines(content, "standard input", style, bool(_OBJECT.match(content)))


def unreadable(name: str, path: Path, error: OSError) -> UserError:
    """A file that cannot be read, and the one that may have been meant."""
    there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
    return UserError(f"{name}: {error.strerror}{hint}")


def first_problems(problems: Sequence[str]) -> str:
    """Some of what is wrong with a file's lines, and how much more there is."""
    more = [f"and {len(problems) - _SHOWN} more lines"] if len(problems) > _SHOWN else []
    return "\n".join([*problems[:_SHOWN], *more])


def _of_lines(content: bytes, name: str, style: Style, is_json: bool) -> list[Asked]:
    asked: dict[str, Asked] = {}
    problems = []
    # Not splitlines: it also cuts at characters that JSON and prompts may contain.
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{name}:{number}"
        try:
            line = raw.removesuffix(b"\r").decode("utf-8")
            if not line.strip():
                continue
            one = _of_json(number, line, where, style) if is_json else Asked(number, line, where)
        except UnicodeDecodeError as error:
            problems.append(f"{where}: byte {error.start + 1} is not UTF-8: save it as UTF-8")
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: {error}")
        else:
            if one.key in asked:
                problems.append(f"{where}: id {one.id} is that of {asked[one.key].where} too")
            asked.setdefault(one.key, one)
    if problems:
        raise UserError(first_problems(problems))
    if not asked:
        raise UserError(f"{name}: empty: a prompt a line is expected")
    return list(asked.values())


def _of_json(number: int, line: str, where: str, style: Style) -> Asked:
    """One line: `{"prompt": ...}` or `{"title": ...}`, with an id or without; more is not read.

    Raises:
        ValueError: It is not that.
    """
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError('not an object: must be like {"prompt": "city!"} or {"title": "..."}')
    given = [key for key in ("prompt", "title") if row.get(key) is not None]
    if len(given) != 1:
        if given:
            raise ValueError("has a prompt and a title: give one of them")
        close = [key for key in row if difflib.get_close_matches(key, ("prompt", "title"), n=1)]
        raise ValueError("no prompt and no title" + (f"; is {close[0]} one?" if close else ""))
    text, own = row[given[0]], row.get("id", number)
    if not isinstance(text, str):
        raise ValueError(f"{given[0]}: {text!r} is not text")
    if SURROGATES.search(f"{text}{own}"):
        raise ValueError("has half of a surrogate pair, which is no character")
    if not isinstance(own, str | int) or isinstance(own, bool):
        raise ValueError(f"id: {own!r} is neither text nor a whole number")
    return _of_title(own, text, where, style) if given == ["title"] else Asked(own, text, where)


def _of_title(own: str | int, title: str, where: str, style: Style) -> Asked:
    return Asked(own, style.prompt(title), where, style.title(title))
