"""Texts that a user gives to be judged: a JSONL file as `pressroom generate --out` writes it.

Knows nothing of models.
"""

import json
from pathlib import Path

from generate.asked import SURROGATES, first_problems, unreadable
from generate.written import Text
from pressroom.console import UserError


def read(path: Path, name: str) -> list[Text]:
    """The texts of a file; each line has a `continuation`, and may have more.

    Args:
        path: The file.
        name: What it is called when something is wrong with it.

    Raises:
        UserError: It cannot be read, or has none; with every line that is wrong.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise unreadable(name, path, error) from None
    texts, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                texts.append(_text(number, json.loads(line)))
            except json.JSONDecodeError as error:
                problems.append(f"{name}:{number}: not JSON: {error}")
            except (ValueError, RecursionError) as error:
                problems.append(f"{name}:{number}: {error}")
    if not texts and not problems:
        problems.append(f"{name}: has no text in it")
    if problems:
        raise UserError(first_problems(problems))
    return texts


def _text(number: int, row: object) -> Text:
    """One line.

    Raises:
        ValueError: It is no text.
    """
    if not isinstance(row, dict) or not isinstance(row.get("continuation"), str):
        raise ValueError('no text: must be like {"continuation": "..."}, and may have more')
    ended, title = row.get("ended"), row.get("title")
    text = Text(
        id=str(row.get("id", number)),
        prompt=str(row.get("prompt", "")),
        words=row["continuation"],
        ended=ended if isinstance(ended, bool) else None,
        title=title if isinstance(title, str) else None,
    )
    if SURROGATES.search(f"{text.id}{text.prompt}{text.words}{text.title}"):
        raise ValueError("has half of a surrogate pair, which is no character")
    return text
