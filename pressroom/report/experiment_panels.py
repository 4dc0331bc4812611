"""Panels of an experiment: each one a picture of the page, all side by side a PNG.

Lines differ in colour, marker and dashes, so that they are told apart in grey too. Knows nothing
of what is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pressroom.report.curves import Picture, _svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010101"
"""A page shows it in the colour of its text."""
FAINT = "#8a8a8a"
RULE, _PALE = "#020202", "#dddddd"
"""Lines behind the figures: what a page colours by itself, and on white paper."""
_WIDTH, _HEIGHT = 5.2, 3.4

STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "marker": marker, "ls": dashes}
    for color, marker, dashes in (
        ("#0072b2", "o", "-"),
        ("#d55e00", "s", "--"),
        ("#009e73", "^", "-."),
        ("#cc79a7", "D", (0, (5, 1))),
        ("#e69f00", "v", (0, (3, 1, 1, 1))),
        ("#56b4e9", "P", (0, (1, 1))),
    )
)
"""Okabe and Ito's colours, which the colour-blind tell apart: jfly.uni-koeln.de/color."""


def style(number: int) -> dict[str, Any]:
    """How a line is drawn: the same for its number in every panel."""
    return dict(STYLES[number % len(STYLES)])


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    x: str
    y: str
    draw: "Callable[[Axes], None]" = field(repr=False)
    has_grid: bool = True


def pictures(panels: Sequence[Panel]) -> list[Picture]:
    """Each panel for a page."""
    found = []
    for panel in panels:
        figure, (axes,) = _figure(1)
        _fill(axes, panel, RULE)
        found.append(Picture(panel.title, _svg(figure, panel.title)))
    return found


def side_by_side(title: str, panels: Sequence[Panel]) -> "Figure":
    """All panels in one figure, on white."""
    figure, every = _figure(len(panels))
    figure.suptitle(title, fontsize="medium", fontweight="bold")
    for axes, panel in zip(every, panels, strict=True):
        axes.set_title(panel.title, loc="left", fontsize="medium")
        _fill(axes, panel, _PALE)
    return figure


def _figure(count: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * count, _HEIGHT + (count > 1) * 0.5), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _fill(axes: "Axes", panel: Panel, rule: str) -> None:
    axes.set_xlabel(panel.x, color=INK)
    axes.set_ylabel(panel.y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(rule)
    axes.tick_params(color=rule, labelcolor=INK, which="both")
    axes.set_axisbelow(True)
    if panel.has_grid:
        axes.grid(axis="y", color=rule, lw=0.6)
    panel.draw(axes)
    _legend(axes)


def _legend(axes: "Axes") -> None:
    """Below the picture, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = 2 if max(map(len, labels)) > 18 else 3
    axes.legend(
        handles,
        labels,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        ncols=min(columns, len(labels)),
        loc="upper left",
        bbox_to_anchor=(0, -0.2),
        borderaxespad=0,
    )


def counts_on_x(axes: "Axes", counts: Sequence[int]) -> None:
    """An axis of powers of two, each count that was asked for with its number."""
    from matplotlib.ticker import FixedLocator, NullLocator

    every = sorted(set(counts))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(every[0] / 1.25, every[-1] * 1.25)


def plain_log_y(axes: "Axes") -> None:
    """A logarithmic axis with figures that people read, however few decades it has."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high / low < 30
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(figure))


def plain_log_x(axes: "Axes") -> None:
    """The same of the other axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    few = high / low < 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(figure))


def figure(value: float, position: float = 0) -> str:
    """`20000` -> `20,000`, `2e6` -> `2M`, `0.00052` -> `0.00052`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
