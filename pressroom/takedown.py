"""The takedown list: articles that must not be used, because somebody has asked for it.

A text file with one id or URL a line; `#` begins a comment. Knows nothing of datasets.
"""

from pathlib import Path

from pressroom.console import UserError
from pressroom.files import home, sha256_json
from pressroom.identity import meant
from pressroom.recipe import Recipe
from pressroom.sections import Data

DEFAULT = Data.takedown
_SHOWN = 20


def ids(recipe: Recipe) -> frozenset[str]:
    """Ids of the articles that a recipe must not use; none where there is no list.

    Raises:
        UserError: The list that the recipe names is not there, or has lines that name no article.
    """
    path = home() / Path(recipe.data.takedown).expanduser()
    if not path.exists() and recipe.data.takedown != DEFAULT:
        raise UserError(
            f"data.takedown: {path}: no such file; an empty one takes nothing down, and {DEFAULT}, "
            "which is the default, need not exist"
        )
    return frozenset(read(path))


def read(path: Path) -> dict[str, int]:
    """Id -> the line that names it first; empty where there is no such file.

    Raises:
        UserError: Naming every line that names no article; or it is not a text file.
    """
    if not path.exists():
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors write a mark before it
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: the takedown list cannot be read ({reason})") from None
    found: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if entry := line.partition("#")[0].strip():  # what follows it in a URL names no other
            try:
                found.setdefault(meant(entry), number)
            except ValueError as error:
                problems.append(f"{path}:{number}: {entry!r:.80}: {error}")
    if problems:
        more = f"\n... and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise UserError("\n".join(problems[:_SHOWN]) + more)
    return found


def told(listed: frozenset[str]) -> str:
    """A list in a few words that are its own, by which one dataset is told from another.

    >>> told(frozenset()), told(frozenset(["00000000000000aa"]))
    ('none', '1 (3d2e7ffa2df5)')
    """
    return f"{len(listed):,} ({sha256_json(sorted(listed))[:12]})" if listed else "none"
