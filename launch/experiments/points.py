"""Which points an experiment has: of each kind a pure function.

Knows nothing of where points run, nor of how.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import PurePath
from typing import Any

from launch.experiments.axes import Axis, Range
from pressroom.console import UserError
from pressroom.experiment import Point

_LONGEST_NAME = 60
Shape = Callable[[int], tuple[int, int]]
"""How many ranks -> nodes, and ranks of each."""


def sweep(
    axes: Mapping[str, Axis], shape: tuple[int, int], *, number: int | None = None, seed: int = 0
) -> list[Point]:
    """A grid, or so many points at random.

    Args:
        axes: Recipe key -> its values.
        shape: Nodes and ranks of each.
        number: None: the grid.
        seed: Of what is drawn: the same points each time.

    Raises:
        UserError: There is nothing to vary, or a range without a number of points.
    """
    if not axes:
        raise UserError(
            "nothing varies: give a key several values, as in optimizer.learning_rate=1e-4,2e-4"
        )
    if number is None:
        ranges = [f"{key}={axis}" for key, axis in axes.items() if isinstance(axis, Range)]
        if ranges:
            raise UserError(f"{', '.join(ranges)}: a range has no grid: add --random N")
        lists = [axis for axis in axes.values() if isinstance(axis, list)]
        chosen = [dict(zip(axes, values, strict=True)) for values in product(*lists)]
    else:
        chosen = list(_drawn(axes, number, random.Random(seed)))
    found = []
    for count, values in enumerate(chosen, start=1):
        words = [f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in values.items()]
        name = _name(f"{count:0{len(str(len(chosen)))}d}", *words)
        found.append(_point(name, values, values, shape))
    return found


def _drawn(
    axes: Mapping[str, Axis], number: int, source: random.Random
) -> Iterator[dict[str, Any]]:
    """Different points; fewer where there are no more."""
    seen = set()
    for _ in range(100 * number):
        values = {
            key: axis.draw(source) if isinstance(axis, Range) else source.choice(axis)
            for key, axis in axes.items()
        }
        if repr(values) not in seen:
            seen.add(repr(values))
            yield values
        if len(seen) == number:
            return


def scale(
    counts: Sequence[int],
    shape: Shape,
    *,
    repeats: int,
    strategies: Sequence[str] = (),
    models: Sequence[str] = (),
    batch_of: Callable[[int], dict[str, Any]] = lambda ranks: {},
    short: Mapping[str, Any],
) -> list[Point]:
    """Each number of GPUs, so many times, with each strategy and model.

    The numbers come first, repeats last: what stands early tells most when the rest is missing.

    Args:
        counts: Of GPUs.
        shape: What a number of GPUs is here.
        repeats: Of each point.
        strategies: None named: the recipe's.
        models: None named: the recipe's.
        batch_of: What a number of GPUs changes in the recipe.
        short: What makes runs short.
    """
    found = []
    for repeat, model, strategy, count in product(
        range(1, repeats + 1), models or ("",), strategies or ("",), sorted(set(counts))
    ):
        lines = {"model": model, "strategy": strategy}
        values = {k: v for k, v in lines.items() if v} | {"ranks": count, "repeat": repeat}
        overrides = {**short, **batch_of(count)}
        if model:
            overrides["model.base"] = model
        if strategy:
            overrides["parallel.strategy"] = strategy
        short_model = PurePath(model).name if model else ""
        name = _name(short_model, strategy or "", f"{count}-ranks", f"repeat-{repeat}")
        found.append(_point(name, values, overrides, shape(count)))
    return _distinct(found)


def short(steps: int) -> dict[str, Any]:
    """Overrides that make a run short, and its steps nothing but steps."""
    return {
        "optimizer.num_steps": steps,
        "optimizer.num_epochs": None,
        "checkpoint.every_steps": steps,
        "checkpoint.keep_best": False,
        "evaluation.every_steps": None,
        "evaluation.early_stopping": None,
        "tracking.sample_every_steps": None,
        "tracking.trackers": [],
    }


def size(
    models: Sequence[str],
    fractions: Sequence[float],
    epochs: Sequence[float],
    shape: tuple[int, int],
) -> list[Point]:
    """Each model with each share of the articles and each number of passes; small ones first.

    Args:
        models: Folders or hub ids; none named: the recipe's.
        fractions: Of the articles to train on; none named: the recipe's.
        epochs: None named: the recipe's length.
        shape: Nodes and ranks of each.

    Raises:
        UserError: There is nothing to vary.
    """
    keys = ("model.base", "data.fraction", "optimizer.num_epochs")
    if not any(len(values) > 1 for values in (models, fractions, epochs)):
        raise UserError("nothing varies: --models, --data or --epochs needs several values")
    found = []
    for model, fraction, passes in product(
        models or ("",), sorted(fractions) or (0.0,), sorted(epochs) or (0.0,)
    ):
        chosen = (model, fraction, passes)
        overrides: dict[str, Any] = {k: v for k, v in zip(keys, chosen, strict=True) if v}
        words = [PurePath(model).name]
        words += [f"data-{fraction:g}" if fraction else "", f"epochs-{passes:g}" if passes else ""]
        values = dict(overrides)
        if passes:
            overrides["optimizer.num_steps"] = None
        found.append(_point(_name(*words), values, overrides, shape))
    return _distinct(found)


def _point(
    name: str, values: Mapping[str, Any], overrides: Mapping[str, Any], shape: tuple[int, int]
) -> Point:
    return Point(
        name=name,
        values=dict(values),
        overrides=dict(overrides),
        nodes=shape[0],
        ranks_per_node=shape[1],
    )


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(*words: str) -> str:
    """A folder's name: letters that no shell and no file system minds."""
    text = "-".join(word for word in words if word)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:_LONGEST_NAME]


def _distinct(points: Sequence[Point]) -> list[Point]:
    """The same points, a number behind a name that another has."""
    seen: dict[str, int] = {}
    found = []
    for point in points:
        seen[point.name] = times = seen.get(point.name, 0) + 1
        found.append(replace(point, name=f"{point.name}-{times}") if times > 1 else point)
    return found
