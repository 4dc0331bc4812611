"""How long one call takes on a device: medians of timed groups, on data that no cache holds.

Knows nothing of what is called.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[int], object]
"""Does the work once; the number says which of the rotated inputs to take."""

GROUP_SECONDS = 1e-3
MOST_GROUPS = 300


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call."""

    median: float
    low: float
    """A tenth of the groups were faster."""
    high: float
    """A tenth were slower."""
    calls: int
    """Timed calls, over all groups."""


def measure(run: Run, device: torch.device, seconds: float) -> Timing:
    """Time calls that follow each other without a wait between them.

    Short calls are timed in groups of about a millisecond, so that neither the events nor the
    start of a kernel weighs.

    Args:
        run: What is timed; called with 0, 1, 2, ...
        device: Where it runs.
        seconds: About how long is timed, after warm-up.
    """
    for number in range(3):
        run(number)
    _synchronize(device)
    start = time.perf_counter()
    for number in range(3):
        run(number)
    _synchronize(device)
    once = (time.perf_counter() - start) / 3
    inner = max(1, math.ceil(GROUP_SECONDS / once))
    groups = min(MOST_GROUPS, max(3, int(seconds / (once * inner))))
    spans = _cuda_spans if device.type == "cuda" else _cpu_spans
    each = sorted(span / inner for span in spans(run, inner, groups))
    tenth = len(each) // 10
    return Timing(
        median=statistics.median(each),
        low=each[tenth],
        high=each[-1 - tenth],
        calls=inner * groups,
    )


def _cuda_spans(run: Run, inner: int, groups: int) -> list[float]:
    """Seconds of each group, by events on the stream: the host runs ahead of the device."""
    event: Any = torch.cuda.Event
    marks = [event(enable_timing=True) for _ in range(groups + 1)]
    marks[0].record()
    for group in range(groups):
        for number in range(inner):
            run(group * inner + number)
        marks[group + 1].record()
    torch.cuda.synchronize()
    return [marks[g].elapsed_time(marks[g + 1]) / 1e3 for g in range(groups)]


def _cpu_spans(run: Run, inner: int, groups: int) -> list[float]:
    spans = []
    for group in range(groups):
        start = time.perf_counter()
        for number in range(inner):
            run(group * inner + number)
        spans.append(time.perf_counter() - start)
    return spans


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def num_sets(bytes_each: float, device: torch.device) -> int:
    """Sets of buffers to rotate among: four times the L2 cache, so that each is read from memory.

    Args:
        bytes_each: Bytes that one call reads and writes.
        device: Whose cache; of a CPU, whose figures are not the point, two.
    """
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(64, max(2, math.ceil(4 * cache / bytes_each)))
