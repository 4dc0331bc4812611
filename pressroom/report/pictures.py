"""Pictures: figures from numbers, drawn by matplotlib, which is loaded when one is asked for.

Knows nothing of where the numbers come from.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pressroom.planner.curve import Point

_BLUE, _ORANGE = "#0072B2", "#D55E00"
"""Of Okabe and Ito's palette, which the colour-blind tell apart: jfly.uni-koeln.de/color."""

Ints = npt.NDArray[np.integer[Any]]


def packing_figure(
    title: str, lengths: Ints, tokens_of_rows: Ints, pieces_of_rows: Ints, sequence_length: int
) -> "Figure":
    """How long articles are, how full their rows are, and how many share one.

    Args:
        title: Stands above.
        lengths: Tokens of each article, or of each piece of one that was split.
        tokens_of_rows: Tokens of each row.
        pieces_of_rows: Articles, or pieces, of each row.
        sequence_length: Tokens that a row has room for.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplot_mosaic([["lengths", "fill"], ["lengths", "shared"]], width_ratios=[5, 4])
    longest = max(sequence_length, int(lengths.max(initial=0)))
    width = -(-longest // 64)
    left = axes["lengths"]
    left.hist(lengths, bins=np.arange(1, longest + width + 1, width).tolist(), color=_BLUE)
    left.axvline(sequence_length, color=_ORANGE)
    left.annotate(
        f"a row: {sequence_length:,} tokens",
        (sequence_length, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        color=_ORANGE,
    )
    median = f"How long articles are: median {np.median(lengths):,.0f} tokens"
    _label(left, median, "tokens of an article, or of a piece of one", "articles")

    fill = 100 * tokens_of_rows / sequence_length
    axes["fill"].hist(fill, bins=np.linspace(0, 100, 51).tolist(), color=_BLUE)
    used = 100 * tokens_of_rows.sum() / (len(tokens_of_rows) * sequence_length)
    _label(axes["fill"], f"How full rows are: {used:.1f} % over all", "% of a row", "rows")

    numbers, rows = np.unique(pieces_of_rows, return_counts=True)
    axes["shared"].bar(numbers, rows, color=_BLUE, width=0.9)
    axes["shared"].set_xlim(0.3, max(numbers.max(), 5) + 0.7)
    axes["shared"].xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(axes["shared"], "How many articles share a row", "articles in a row", "rows")
    return figure


def scaling_figure(
    title: str, tokens: int, fixed: "Sequence[Point]", grown: "Sequence[Point]"
) -> "Figure":
    """Tokens a second, efficiency and GPU-hours against the number of GPUs.

    Args:
        title: Stands above.
        tokens: Of the run whose cost is drawn.
        fixed: With the recipe's global batch, as far as it divides.
        grown: With a global batch that grows with the GPUs.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    panels = {
        "tokens_per_second": ("Tokens a second, in steps", "tokens/s, all GPUs", 1),
        "gpu_hours": (
            f"Cost of {tokens / 1e6:,.0f} million tokens, loading included",
            "GPU-hours",
            1,
        ),
        "efficiency": ("Efficiency: GPU-hours of the fewest over these", "%", 100),
    }
    curves = (
        ("a batch that grows with the GPUs", _ORANGE, "--", grown),
        ("the recipe's global batch", _BLUE, "-", fixed),
    )
    for axes, (name, (heading, unit, scale)) in zip(
        figure.subplots(1, 3), panels.items(), strict=True
    ):
        for label, color, style, points in curves:
            counts = [point.count for point in points]
            values = [scale * getattr(point, name) for point in points]
            axes.plot(counts, values, style, color=color, label=label)
            for fits, face in ((True, color), (False, "white")):
                chosen = [i for i, point in enumerate(points) if point.fits == fits]
                axes.plot(
                    [counts[i] for i in chosen],
                    [values[i] for i in chosen],
                    *("o",),
                    color=color,
                    markerfacecolor=face,
                    label="does not fit" if not fits and chosen and style == "-" else None,
                )
        _label(axes, heading, "GPUs", unit)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([2**n for n in range(0, 11, 2)])
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if name == "tokens_per_second":
            axes.set_yscale("log")
            axes.legend(frameon=False, fontsize="small")
        else:
            axes.set_ylim(0, 1.08 * axes.dataLim.y1)
    return figure


def _label(axes: "Axes", title: str, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=2))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.margins(x=0.02)


def to_bytes(figure: "Figure", kind: str) -> bytes:
    """A drawn figure: png, svg or pdf."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()
