"""What an experiment answers: a table, figures, panels, and what is wrong with it.

The three kinds of experiments differ in the function that makes one. Knows nothing of how an
answer is written down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pressroom.experiment import Point
from pressroom.report.experiment_panels import Panel
from pressroom.report.experiment_runs import Result


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came out, as far as it is there."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Of the table for people."""
    figures: Sequence[dict[str, Any]]
    """The same as values, units in their names."""
    panels: Sequence[Panel]
    notes: Sequence[str] = ()
    """How the figures come about, in sentences."""
    problems: Sequence[str] = ()
    """What must not be so: the command that sees it ends with an error."""
    best: Point | None = None


def failures(results: Sequence[Result]) -> list[str]:
    """What went wrong with points, a line each."""
    return [
        f"{r.point.name}: failed: {r.note or 'without a word'}"
        for r in results
        if r.state == "failed"
    ]


def num(value: float | None, digits: int = 4) -> str:
    """A figure for a table; `-` where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def spread(values: Sequence[float], scale: float = 1.0, unit: str = "", digits: int = 4) -> str:
    """The mean, and behind it the lowest and the highest where there are several."""
    if not values:
        return "-"
    mean = scale * sum(values) / len(values)
    if len(values) == 1:
        return f"{num(mean, digits)}{unit}"
    low, high = (num(scale * end(values), digits) for end in (min, max))
    return f"{num(mean, digits)}{unit} ({low}-{high})"
