"""metrics.jsonl as series of numbers, and series thin enough to be drawn.

Takes every name that a row has. Knows nothing of what the names mean.
"""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Series = tuple[Floats, Floats]
"""Steps [N], rising, and the value at each [N], which may be NaN or infinite."""

_MOST_POINTS = 1000
_LARGEST = 1e100
"""What is larger no axis can show: it counts as infinite."""


def read(path: Path) -> tuple[dict[str, Series], int]:
    """The series of a metrics.jsonl, and how many of its lines are damaged.

    A name's series has the steps at which a row has a number for it: null is left out, NaN is not.
    """
    steps: defaultdict[str, list[float]] = defaultdict(list)
    values: defaultdict[str, list[float]] = defaultdict(list)
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            row = _row(line)
            if row is None:
                damaged += bool(line.strip())
                continue
            step = row.pop("step")
            for name, value in row.items():
                steps[name].append(step)
                values[name].append(value)
    series = {}
    for name, found in values.items():
        steps_N = np.array(steps[name])
        order = np.argsort(steps_N, kind="stable")
        series[name] = (steps_N[order], np.array(found)[order])
    return series, damaged


def _row(line: str) -> dict[str, float] | None:
    """A line's numbers by name; None where it is no row of a step."""
    try:
        row: dict[str, Any] = json.loads(line)
        numbers = {k: float(v) for k, v in row.items() if type(v) in (int, float)}
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return numbers if 0 <= numbers.get("step", -1) < _LARGEST else None


def finite(series: Series) -> Series:
    """The points whose value is a number."""
    steps_N, values_N = series
    chosen = np.abs(values_N) < _LARGEST  # not so for NaN
    return steps_N[chosen], values_N[chosen]


def thin(series: Series, most: int = _MOST_POINTS) -> Series:
    """At most so many points: of each stretch the lowest and the highest, so no peak is lost."""
    steps_N, values_N = series
    if len(steps_N) <= most:
        return series
    edges = np.linspace(0, len(steps_N), most // 2 + 1).astype(int)
    kept = set()
    for start, end in pairwise(edges):
        stretch = values_N[start:end]
        kept |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    index = np.array(sorted(kept))
    return steps_N[index], values_N[index]


def smooth(series: Series) -> tuple[Series, int]:
    """The mean of the points around each point, and how many they are: about a twentieth of all.

    At both ends there are fewer, and the mean is of those.
    """
    steps_N, values_N = series
    half = max(len(values_N) // 40, min(len(values_N) // 10, 5))
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    index = np.arange(len(values_N))
    first, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values_N))
    return (steps_N, (sums[end] - sums[first]) / (end - first)), 2 * half + 1
