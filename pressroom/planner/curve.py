"""Scale on paper: tokens/s, efficiency and GPU-hours of a recipe on 1 to 1,024 GPUs.

Pure functions; `pressroom/report.py` draws them. Knows nothing of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pressroom.console import human_seconds
from pressroom.geometry import Geometry
from pressroom.planner.choice import Gpus, Option, options
from pressroom.recipe import Recipe

COUNTS = tuple(2**n for n in range(11))
PAYS = 1.5
"""Twice the GPUs pay while the run is over this many times as soon: our choice."""
TOKENS = 10**8
"""Of a run whose length nobody knows yet: a hundred thousand articles of a thousand tokens."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A recipe on so many GPUs."""

    count: int
    tokens_per_second: float
    """Of all GPUs, in steps."""
    run_seconds: float
    """Of all tokens, loading included."""
    gpu_hours: float
    efficiency: float
    """GPU-hours of the fewest GPUs of the same curve over those of this many."""
    fits: bool
    global_batch_size: int


def curve(
    recipe: Recipe, geometry: Geometry, gpus: Gpus, tokens: int, *, grow: bool
) -> list[Point]:
    """The points of a curve.

    Args:
        recipe: Its strategy and checkpointing are kept; the micro-batch is the fastest that fits.
        geometry: The decoder.
        gpus: Their kind, and how many a node has.
        tokens: Of the run.
        grow: Whether the global batch grows with the GPUs (each keeps its share), or stays the
            recipe's, as far as it divides: then the same is trained, whatever the number.
    """
    found = [o for count in COUNTS if (o := _on(recipe, geometry, gpus, count, grow))]
    points: list[Point] = []
    for each in found:
        points.append(_point(each, tokens, points[0] if points else None))
    return points


def _on(recipe: Recipe, geometry: Geometry, gpus: Gpus, count: int, grow: bool) -> Option | None:
    per_node = min(count, gpus.gpus_per_node)
    if count % per_node:
        return None
    batch = recipe.batch
    size = batch.global_batch_size
    if grow:
        size = max(size // gpus.count, 1) * count
    elif size % count:
        return None
    there = Gpus(kind=gpus.kind, nodes=count // per_node, gpus_per_node=per_node)
    free = replace(batch, global_batch_size=size, micro_batch_size="auto")
    found = options(replace(recipe, batch=free), geometry, there)
    return next((o for o in found if o.plan.fits), found[-1])


def _point(found: Option, tokens: int, first: Point | None) -> Point:
    planned, count = found.plan, found.gpus.count
    rate = planned.tokens_per_second_per_gpu * count
    seconds = planned.load_seconds + tokens / rate
    hours = seconds * count / 3600
    return Point(
        count=count,
        tokens_per_second=rate,
        run_seconds=seconds,
        gpu_hours=hours,
        efficiency=first.gpu_hours / hours if first else 1.0,
        fits=planned.fits,
        global_batch_size=found.recipe.batch.global_batch_size,
    )


def stops_paying(points: Sequence[Point]) -> Point | None:
    """The last point before twice the GPUs save too little time; None if they never do."""
    for before, after in pairwise(points):
        if before.run_seconds < PAYS * after.run_seconds:
            return before
    return None


def summary(tokens: int, fixed: Sequence[Point], grown: Sequence[Point]) -> str:
    """Where more GPUs stop paying."""
    lines = [f"a run of {tokens:,} tokens, loading included:"]
    names = ("with the recipe's global batch", "with a batch that grows with the GPUs")
    for name, points in zip(names, (fixed, grown), strict=True):
        if not points:
            lines.append(f"{name}: it divides over no number of GPUs")
            continue
        end, last = stops_paying(points), points[-1]
        told = f"each doubling pays up to {last.count:,} GPUs, {_cost(last)}"
        if end:
            after = next(p for p in points if p.count == 2 * end.count)
            told = (
                f"more than {end.count:,} GPUs stop paying: {_cost(end)}, and {after.count:,} take "
                f"{_cost(after)}"
            )
        lines.append(f"{name}: {told}")
    return "\n".join(lines)


def _cost(point: Point) -> str:
    return f"{human_seconds(point.run_seconds)} for {point.gpu_hours:,.0f} GPU-hours"
