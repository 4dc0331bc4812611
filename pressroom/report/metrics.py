"""metrics.jsonl as series of numbers, and series thin enough to be drawn.

Takes every name that a row has. Knows nothing of what the names mean.
"""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pressroom.standing import LARGEST, row

Floats = npt.NDArray[np.float64]
Series = tuple[Floats, Floats]
"""Steps [N], rising, and the value at each [N], which may be NaN or infinite."""

_MOST_POINTS = 1000


def read(path: Path) -> tuple[dict[str, Series], int]:
    """The series of a metrics.jsonl, and how many of its lines are damaged.

    A name's series has the steps at which a row has a number for it: null is left out, NaN is not.
    """
    steps: defaultdict[str, list[float]] = defaultdict(list)
    values: defaultdict[str, list[float]] = defaultdict(list)
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = row(line)
            if found is None:
                damaged += bool(line.strip())
                continue
            step = found.pop("step")
            for name, value in found.items():
                steps[name].append(step)
                values[name].append(value)
    series = {}
    for name, numbers in values.items():
        steps_N = np.array(steps[name])
        order = np.argsort(steps_N, kind="stable")
        series[name] = (steps_N[order], np.array(numbers)[order])
    return series, damaged


def finite(series: Series) -> Series:
    """The points whose value is a number."""
    steps_N, values_N = series
    chosen = np.abs(values_N) < LARGEST  # not so for NaN
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
