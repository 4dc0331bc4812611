"""Panels of a scaling experiment: speed with the ideal and the prediction, efficiency, cost.

Knows nothing of how the figures come about.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pressroom.report.experiment_panels import (
    FAINT,
    INK,
    Panel,
    counts_on_x,
    plain_log_y,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pressroom.report.experiment_scale import Row

_BARS: dict[str, Any] = {"capsize": 3, "lw": 1.5, "ms": 5}


def panels(rows: "Sequence[Row]", tokens: float, what: str) -> list[Panel]:
    """What is drawn of the rows of a table.

    Args:
        rows: In the order of lines, then of GPUs.
        tokens: Of a run whose cost is drawn.
        what: A GPU, or what stands for one.
    """
    cost = f"Cost of {tokens / 1e6:,.6g} million tokens, in steps"

    def of(draw: "Callable[[Axes, Sequence[Row]], None]") -> "Callable[[Axes], None]":
        def drawn(axes: "Axes") -> None:
            draw(axes, rows)
            counts_on_x(axes, [row.gpus for row in rows])
            _not_there(axes, rows)

        return drawn

    def hours(axes: "Axes", shown: "Sequence[Row]") -> None:
        for number, line in enumerate(_lines(shown)):
            values = [tokens / r.rate * r.gpus / 3600 if r.rate else math.nan for r in line]
            look = style(number) | {"label": line[0].line or None}
            axes.plot([row.gpus for row in line], values, **look, lw=1.5, ms=5)
        axes.set_ylim(0, 1.1 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)

    counts = f"{what}s"
    return [
        Panel("Tokens a second", counts, f"tokens/s, all {counts}", of(_speed)),
        Panel("Efficiency", counts, f"%, against the fewest {counts}", of(_efficiency)),
        Panel(cost, counts, f"{what}-hours", of(hours)),
    ]


def _lines(rows: "Sequence[Row]") -> "list[list[Row]]":
    return [[r for r in rows if r.line == name] for name in dict.fromkeys(r.line for r in rows)]


def _speed(axes: "Axes", rows: "Sequence[Row]") -> None:
    has_ideal = False
    for number, line in enumerate(_lines(rows)):
        first = next((row for row in line if row.rate), None)
        _bars(axes, number, line, [row.rates for row in line])
        if first and first.rate and not has_ideal:
            has_ideal = True
            ideal = [first.rate * row.gpus / first.gpus for row in line]
            axes.plot([r.gpus for r in line], ideal, color=FAINT, ls=":", lw=1.2, label="ideal")
        look = style(number) | {"mfc": "none", "ls": (0, (1, 3)), "lw": 1, "ms": 6}
        foretold = [row for row in line if row.predicted]
        label = f"{line[0].line} predicted".strip() if foretold else None
        at = [row.gpus for row in foretold]
        axes.plot(at, [row.predicted for row in foretold], **look, label=label)
    plain_log_y(axes)


def _efficiency(axes: "Axes", rows: "Sequence[Row]") -> None:
    axes.axhline(100, color=FAINT, ls=":", lw=1.2, label="ideal")
    for number, line in enumerate(_lines(rows)):
        _bars(axes, number, line, [[100 * e for e in row.efficiencies] for row in line])
    highest = max((e for row in rows for e in row.efficiencies), default=1.0)
    axes.set_ylim(0, 110 * max(highest, 1.0))


def _bars(
    axes: "Axes", number: int, line: "Sequence[Row]", each: Sequence[Sequence[float]]
) -> None:
    """A line through the means, from the lowest to the highest; broken where there is nothing."""
    if not any(each):
        return
    means = [sum(values) / len(values) if values else math.nan for values in each]
    ends = [
        [
            abs(end(values) - mean) if values else math.nan
            for values, mean in zip(each, means, strict=True)
        ]
        for end in (min, max)
    ]
    at, label = [row.gpus for row in line], line[0].line or "measured"
    axes.errorbar(at, means, yerr=ends, label=label, **style(number), **_BARS)


def _not_there(axes: "Axes", rows: "Sequence[Row]") -> None:
    """What has no figure stands at the bottom, a row a line: it failed, did not fit, is missing."""
    marks = {"does not fit": "s", "failed": "x"}
    across, lines = axes.get_xaxis_transform(), _lines(rows)
    for state in dict.fromkeys(s for row in rows if not row.rates for s in row.states):
        look: dict[str, Any] = {"mfc": "none", "ls": "none", "ms": 6, "mew": 1.5}
        look["marker"] = marks.get(state, "|")
        for number, line in enumerate(lines):
            at = [row.gpus for row in line if not row.rates and state in row.states]
            color = style(number)["color"] if len(lines) > 1 else INK
            heights = [0.03 + 0.05 * number] * len(at)
            axes.plot(at, heights, transform=across, **look, color=color)
        axes.plot([], [], **look, color=INK, label=state)
