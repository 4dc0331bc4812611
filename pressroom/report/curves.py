"""A run's series as pictures for a page: SVG whose colours the page's style sets.

Small ones, so that their words can be read on a phone. Knows nothing of files.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup

from pressroom.report.metrics import Series, finite, smooth, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
    "#010101": "currentColor",
    "#020202": "var(--rule)",
}
"""What a picture is drawn in -> what the page says in its place, for light and for dark."""
BLUE, ORANGE, INK, RULE = _COLORS
_FEW = 30


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows, in a sentence."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class _Panel:
    """One series as a line over the steps."""

    name: str
    """In metrics.jsonl."""
    title: str
    unit: str
    scale: float = 1.0
    noisy: bool = True
    """Drawn with its mean."""


_PANELS = (
    _Panel("learning_rate", "Learning rate", "at a step", noisy=False),
    _Panel("grad_norm", "Gradient norm, before clipping", "L2 norm"),
    _Panel("tokens_per_second_per_gpu", "Speed", "tokens/s/GPU"),
    _Panel("mfu", "Model FLOPs utilization (MFU)", "% of the GPU's peak", scale=100),
    _Panel("hfu", "Hardware FLOPs utilization (HFU)", "% of the GPU's peak", scale=100),
    _Panel("model_tflops_per_second_per_gpu", "Model FLOPs", "TFLOP/s a GPU"),
    _Panel("peak_memory_gib", "Peak memory of a rank", "GiB", noisy=False),
    _Panel("peak_host_memory_gib", "Peak host memory", "GiB", noisy=False),
    _Panel("data_wait_seconds", "Wait for data", "s a step"),
)


def of_run(series: Mapping[str, Series], levels: Mapping[str, tuple[str, float]]) -> list[Picture]:
    """Loss first, then a picture of each series that has a number.

    Args:
        series: By their names in metrics.jsonl.
        levels: Name -> (what it is, value) of a line drawn across, as what was predicted.
    """
    pictures = []
    if "loss" in series or "eval_loss" in series:
        pictures.append(_loss(series))
    shown = {name for name, values in series.items() if len(finite(values)[0])}
    for panel in _PANELS:
        # FLOP/s say no more than MFU, where there is one.
        if panel.name in shown and not (panel.name.startswith("model_t") and "mfu" in shown):
            pictures.append(_line(panel, series[panel.name], levels.get(panel.name)))
    return pictures


def _loss(series: Mapping[str, Series]) -> Picture:
    nothing = (np.array([]), np.array([]))
    loss, held_out = series.get("loss", nothing), finite(series.get("eval_loss", nothing))
    steps_N, values_N = finite(loss)
    missing = np.setdiff1d(loss[0], steps_N)

    def draw(axes: "Axes") -> None:
        if len(steps_N):
            _draw(axes, (steps_N, values_N), noisy=True)
        if len(held_out[0]):
            style = "o-" if len(held_out[0]) <= _FEW else "-"
            axes.plot(*thin(held_out), style, color=ORANGE, ms=3.5, lw=1.5, label="held out")
        if len(missing):
            at = missing[np.linspace(0, len(missing) - 1, min(len(missing), 200)).astype(int)]
            label = f"not a number ({len(missing):,})"
            height = np.full(len(at), 0.03)
            across = axes.get_xaxis_transform()
            axes.plot(at, height, "x", color=ORANGE, ms=5, transform=across, label=label)

    return drawn("Loss of a trained token", draw, "nats a token")


def _line(panel: _Panel, series: Series, level: tuple[str, float] | None) -> Picture:
    steps_N, values_N = finite(series)

    def draw(axes: "Axes") -> None:
        points = (steps_N, panel.scale * values_N)
        _draw(axes, points, noisy=panel.noisy)
        if level and np.isfinite(level[1]):
            name, value = level
            axes.axhline(panel.scale * value, color=ORANGE, ls="--", lw=1.2, label=name)
        axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)
        axes.yaxis.set_major_formatter(_figure)

    return drawn(panel.title, draw, panel.unit)


def _draw(axes: "Axes", points: Series, *, noisy: bool) -> None:
    """A line; a noisy one is pale where there is enough of it to draw its mean."""
    mean, width = smooth(points)
    if width == 1 or not noisy:
        style = "o-" if len(points[0]) == 1 else "-"
        axes.plot(*thin(points), style, color=BLUE, lw=1.4)
        return
    axes.plot(*thin(points), color=BLUE, lw=1, alpha=0.35)
    axes.plot(*thin(mean), color=BLUE, lw=1.8, label=f"mean of {width:,} steps")


def _figure(value: float, position: float) -> str:
    return f"{value:,.6g}"


def perplexity(rows: Mapping[str, float]) -> Picture:
    """Held-out perplexity of each model, as bars."""

    def draw(axes: "Axes") -> None:
        colors = [ORANGE if name == "tuned" else BLUE for name in rows]
        bars = axes.barh(list(rows), list(rows.values()), color=colors, height=0.6)
        axes.bar_label(bars, fmt="{:.4g}", padding=4, color=INK, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.grid(visible=False)

    unit = "perplexity of the trained tokens"
    return drawn("Held-out perplexity: less is better", draw, "", x=unit, height=1.9)


def drawn(
    title: str,
    draw: "Callable[[Axes], None]",
    unit: str,
    *,
    x: str = "step",
    height: float = 2.9,
    legend: Literal["inside", "above"] = "inside",
) -> Picture:
    """A picture in the page's style.

    Args:
        title: Of the picture.
        draw: Draws into the axes.
        unit: Of what goes up.
        x: Of what goes to the right.
        height: Inches; a picture is 5.2 wide.
        legend: Where it stands.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(unit, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(RULE)
    axes.tick_params(color=RULE, labelcolor=INK)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    draw(axes)
    if x == "step":
        _count(axes)
    if axes.get_legend_handles_labels()[1]:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "borderpad": 0}
        place: Any = above if legend == "above" else {}
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, **place)
    return Picture(title, _svg(figure, title))


def _count(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _svg(figure: "Figure", salt: str) -> Markup:
    """An SVG that stands in a page: no header, words as words, the page's colours.

    Args:
        figure: What is drawn.
        salt: Keeps the names in it apart from those of other pictures, and the same each time.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    for color, shown in _COLORS.items():
        text = text.replace(color, shown)
    return Markup(text)  # matplotlib escapes the words in it
