"""Panels of a sweep: all loss curves together, and what its two chief settings do.

Knows nothing of how points are ranked.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.report.experiment_panels import (
    FAINT,
    INK,
    Panel,
    plain_log_x,
    plain_log_y,
    style,
)
from pressroom.report.experiment_runs import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 3
"""Curves that the legend names: the best."""
_SHOWN_CELLS = 64
_FAR = 4.0
"""Times the median's distance from the best: what is further off shows no more in its colour."""
_COLORS = "cividis_r"
_UNIT = "held-out loss, nats a token"


def panels(keys: Sequence[str], order: Sequence[Result]) -> list[Panel]:
    """What is drawn of a sweep.

    Args:
        keys: What varies.
        order: All points, the best first.
    """
    found = [Panel("Held-out loss", "step", _UNIT, lambda axes: _curves(axes, keys, order))]
    scored = [r for r in order if r.state == "finished" and _is_number(r.loss)]
    if not scored:
        return found
    others = [result for result in order if result.state == "given up"]
    chief = sorted(keys, key=lambda key: -_effect(key, scored))[:2]
    if len(chief) == 2:
        x, y = chief
        is_grid = all(_few(key, scored) for key in chief)
        draw = _heat if is_grid else _scatter
        lowest = " (lowest over the others)" if len(keys) > 2 and is_grid else ""
        title = f"Last held-out loss{lowest}"
        panel = Panel(title, x, y, lambda axes: draw(axes, x, y, scored, others), has_grid=False)
        return [*found, panel]
    (key,) = chief
    return [*found, Panel("Last held-out loss", key, _UNIT, lambda axes: _line(axes, key, scored))]


def _is_number(loss: float | None) -> bool:
    return loss is not None and bool(np.isfinite(loss))


def _label(keys: Sequence[str], result: Result) -> str:
    values = result.point.values
    return ", ".join(f"{k.rpartition('.')[2]} {_word(values.get(k))}" for k in keys)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _curves(axes: "Axes", keys: Sequence[str], order: Sequence[Result]) -> None:
    from matplotlib.ticker import MaxNLocator

    there = [result for result in order if result.held_out]
    for number, result in enumerate(there):
        is_named = number < _NAMED
        look: dict[str, Any] = style(number) if is_named else {"color": FAINT, "ls": "-"}
        steps, losses = list(result.held_out), list(result.held_out.values())
        label = _label(keys, result) if is_named else None
        width = 1.8 if is_named else 0.8
        axes.plot(steps, losses, **look, lw=width, ms=4, label=label, zorder=2 + is_named)
        if result.state == "given up":
            axes.plot(steps[-1:], losses[-1:], "x", color=INK, ms=6, zorder=4)
    if any(result.state == "given up" for result in there):
        axes.plot([], [], "x", color=INK, ms=6, label="given up")
    if len(there) > _NAMED:
        more = len(there) - _NAMED
        axes.plot([], [], color=FAINT, lw=0.8, label=f"{more} other{'s' * (more > 1)}")
    if not there:
        axes.text(0.5, 0.5, "no evaluation yet", transform=axes.transAxes, ha="center", color=INK)
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    _spare_diverged(axes, there)


def _spare_diverged(axes: "Axes", there: Sequence[Result]) -> None:
    """One curve that flies off must not flatten the others."""
    ends = sorted(v for result in there for v in result.held_out.values() if np.isfinite(v))
    low, high, usual = ends[0], ends[-1], ends[int(0.75 * (len(ends) - 1))]
    if high - low > 5 * max(usual - low, 1e-9):
        axes.set_ylim(low - 0.1 * (usual - low), low + 2 * max(usual - low, 1e-3))


def _effect(key: str, scored: Sequence[Result]) -> float:
    """How far the mean losses of a setting's values are apart."""
    groups: dict[str, list[float]] = defaultdict(list)
    for result in scored:
        groups[repr(result.point.values.get(key))].append(result.loss or 0.0)
    means = [sum(values) / len(values) for values in groups.values()]
    return max(means) - min(means)


def _few(key: str, scored: Sequence[Result]) -> bool:
    return len({repr(result.point.values.get(key)) for result in scored}) <= 8


def _sorted(key: str, scored: Sequence[Result]) -> list[Any]:
    values = {repr(r.point.values.get(key)): r.point.values.get(key) for r in scored}
    numbers = all(isinstance(value, int | float) for value in values.values())
    return sorted(values.values(), key=(lambda v: v) if numbers else repr)


def _heat(axes: "Axes", x: str, y: str, scored: Sequence[Result], others: Sequence[Result]) -> None:
    """Each cell the lowest loss there, in figures too."""
    xs, ys = _sorted(x, [*scored, *others]), _sorted(y, [*scored, *others])
    losses_YX = np.full((len(ys), len(xs)), np.nan)
    for result in scored:
        at = ys.index(result.point.values.get(y)), xs.index(result.point.values.get(x))
        losses_YX[at] = np.nanmin([losses_YX[at], result.loss or np.nan])
    low, high = _ends(losses_YX[np.isfinite(losses_YX)])
    # Not an image: a page lets none be loaded. Edges close the gaps between cells.
    look: dict[str, Any] = {"cmap": _COLORS, "vmin": low, "vmax": high, "edgecolors": "face"}
    image = axes.pcolormesh(range(len(xs)), range(len(ys)), losses_YX, shading="nearest", **look)
    axes.set_xticks(range(len(xs)), [_word(value) for value in xs])
    axes.set_yticks(range(len(ys)), [_word(value) for value in ys])
    known = np.argwhere(np.isfinite(losses_YX))
    for row, column in known if losses_YX.size <= _SHOWN_CELLS else ():
        value = losses_YX[row, column]
        color = "#ffffff" if value > (low + high) / 2 else "#111111"  # a page changes black
        axes.text(column, row, f"{value:.4g}", ha="center", va="center", color=color, fontsize=9)
    for result in others:
        row, column = ys.index(result.point.values.get(y)), xs.index(result.point.values.get(x))
        if np.isnan(losses_YX[row, column]):
            axes.text(column, row, "given up", ha="center", va="center", color=INK, fontsize=8)
    _bar(axes, image, losses_YX)


def _ends(losses: Any) -> tuple[float, float]:
    """The ends of the colours: what is far above most is as dark as can be, and no darker."""
    low, high = float(losses.min()), float(losses.max())
    usual = low + _FAR * max(float(np.median(losses)) - low, 1e-9)
    return low, max(min(high, usual), low + 1e-9)


def _scatter(
    axes: "Axes", x: str, y: str, scored: Sequence[Result], others: Sequence[Result]
) -> None:
    """Points where their settings are, coloured by their loss."""
    every = [*scored, *others]
    places = []
    for key, is_x in ((x, True), (y, False)):
        values = _sorted(key, every)
        numbers = all(isinstance(v, int | float) and v > 0 for v in values)
        order = {repr(value): value if numbers else n for n, value in enumerate(values)}
        places.append([order[repr(result.point.values.get(key))] for result in every])
        if not numbers:
            axis = axes.xaxis if is_x else axes.yaxis
            axis.set_ticks(range(len(values)), [_word(value) for value in values])
    losses = np.array([result.loss or 0.0 for result in scored])
    low, high = _ends(losses)
    look: dict[str, Any] = {"cmap": _COLORS, "vmin": low, "vmax": high, "edgecolors": INK}
    count = len(scored)
    (xs, ys) = places
    image = axes.scatter(xs[:count], ys[:count], s=70, c=losses, lw=0.6, **look)
    axes.plot(xs[count:], ys[count:], "x", color=INK, ms=6, label="given up" if others else None)
    axes.margins(0.1)
    for values, make_log in ((xs, plain_log_x), (ys, plain_log_y)):
        if min(values) > 0 and max(values) / min(values) >= 10:
            make_log(axes)
    _bar(axes, image, losses)


def _bar(axes: "Axes", image: Any, losses: Any) -> None:
    is_cut = float(np.nanmax(losses)) > image.get_clim()[1]
    bar = axes.figure.colorbar(
        image, ax=axes, label="nats a token", extend="max" if is_cut else "neither"
    )
    if bar.solids is not None:
        bar.solids.set_rasterized(False)
        bar.solids.set_edgecolor("face")
    bar.ax.tick_params(labelcolor=INK)
    bar.ax.yaxis.label.set_color(INK)


def _line(axes: "Axes", key: str, scored: Sequence[Result]) -> None:
    values = _sorted(key, scored)
    losses = {repr(r.point.values.get(key)): r.loss for r in reversed(scored)}
    numbers = all(isinstance(v, int | float) and v > 0 for v in values)
    xs = values if numbers else list(range(len(values)))
    axes.plot(xs, [losses[repr(v)] or 0.0 for v in values], **style(0), lw=1.5, ms=5)
    if not numbers:
        axes.set_xticks(xs, [_word(value) for value in values])
        return
    if max(values) / min(values) >= 10:
        axes.set_xscale("log")
    if len(values) <= 8:
        from matplotlib.ticker import NullLocator

        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(values, [_word(value) for value in values])
