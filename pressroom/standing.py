"""How a run stands, as far as its own files tell.

What a page and a table of runs both ask. Reads the ends of files alone, so that a thousand runs
are looked at in a moment. Knows nothing of SLURM, nor of how anything looks.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.locks import is_locked
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

T = TypeVar("T")
LARGEST = 1e100
"""What is larger no axis can show: it counts as infinite."""
_BYTES_OF_ROWS = 16 * 1024


def standing(run: RunDir) -> str:
    """How a run stands: failed, finished, running, given up, preempted, stopped or begun.

    Running is who holds its lock; stopped, who has begun and says no more.
    """
    if run.error.is_file():
        return "failed"
    if run.adapter.is_dir():
        return "finished"
    if is_locked(run.lock):
        return "running"
    if run.given_up.is_file():
        return "given up"
    if run.preempted.is_file():
        return "preempted"
    if run.metrics.is_file() or run.environment.is_file():
        return "stopped"
    return "begun"


def num_steps(recipe: Recipe, manifest: Manifest | None) -> int | None:
    """Steps that a run is to have; None where its epochs' rows are not known."""
    if recipe.optimizer.num_steps is not None:
        return recipe.optimizer.num_steps
    return recipe.num_steps(manifest.rows("train")) if manifest else None


def row(line: str) -> dict[str, float] | None:
    """The numbers of a line of metrics.jsonl, by name; None where it is no row of a step."""
    try:
        values: dict[str, Any] = json.loads(line)
        numbers = {k: float(v) for k, v in values.items() if type(v) in (int, float)}
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return numbers if 0 <= numbers.get("step", -1) < LARGEST else None


def last_rows(path: Path) -> list[dict[str, float]]:
    """The last rows of a metrics.jsonl that have a loss, some dozens."""
    rows = [row(line) for line in last_lines(path, _BYTES_OF_ROWS)]
    return [found for found in rows if found and "loss" in found]


def last_lines(path: Path, num_bytes: int) -> list[str]:
    """The whole lines among the last bytes of a file, and what stands after them."""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - num_bytes)
        file.seek(max(0, start - 1))
        text = file.read().decode(errors="replace")
    # One byte more tells whether the first line is whole: then it is a line's end.
    return text.split("\n", 1)[-1].splitlines() if start else text.splitlines()


def built(path: Path, build: Callable[[], T], notes: list[str]) -> T | None:
    """What a file gives; None where there is none, and a note where it cannot be used."""
    if not path.exists():
        return None
    try:
        return build()
    except UserError as error:
        notes.append(str(error))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        notes.append(f"{path.name}: damaged ({type(error).__name__}: {error}); left out")
    except RecursionError:
        notes.append(f"{path.name}: damaged (nested too deep); left out")
    return None
