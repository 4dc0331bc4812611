"""Panels of a size experiment: held-out loss over cost, over data and over the model's size.

Knows nothing of how a law is fitted.
"""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from pressroom.report.experiment_panels import (
    FAINT,
    Panel,
    plain_log_x,
    plain_log_y,
    style,
)
from pressroom.report.experiment_runs import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pressroom.report.experiment_size import Law

_UNIT = "held-out loss, nats a token"


def panels(results: Sequence[Result], law: "Law | None", unit: str) -> list[Panel]:
    """What is drawn of a size experiment.

    Args:
        results: All points.
        law: Of the loss over the cost.
        unit: What a rank runs on.
    """
    there = [r for r in results if r.state == "finished" and r.loss is not None]
    title = f"Held-out loss over {unit}-hours"

    def by_tokens(axes: "Axes") -> None:
        _by_model(axes, there, _tokens)

    def by_data(axes: "Axes") -> None:
        _by_data(axes, there)

    found = [
        Panel(title, f"{unit}-hours in steps", _UNIT, lambda axes: _cost(axes, there, law)),
        Panel(
            "Over data", "tokens trained on", _UNIT, lambda axes: _by_model(axes, there, _tokens)
        ),
    ]
    sizes = {_parameters(result) for result in there}
    if len(sizes) > 1:
        found.append(Panel("Over the model's size", "parameters", _UNIT, by_data))
    return found


def _tokens(result: Result) -> float:
    return result.tokens


def _hours(result: Result) -> float:
    return result.gpu_hours


def _parameters(result: Result) -> float:
    return float(result.point.foretold.get("parameters", 0))


def _cost(axes: "Axes", there: Sequence[Result], law: "Law | None") -> None:
    _by_model(axes, there, _hours, finish=False)
    hours = [_hours(result) for result in there]
    if law and hours:
        xs = np.geomspace(min(hours), max(hours), 50)
        label = f"fit: {law.factor:.3g} hours^{law.exponents['hours']:.3f}"
        ys = [law({"hours": float(x)}) for x in xs]
        axes.plot(xs, ys, color=FAINT, ls=":", lw=1.5, label=label)
    _finish(axes, there)


def _by_model(
    axes: "Axes", there: Sequence[Result], x: "Callable[[Result], float]", *, finish: bool = True
) -> None:
    names = [_model(result) for result in there]
    for number, name in enumerate(dict.fromkeys(names)):
        mine = sorted((r for r in there if _model(r) == name), key=x)
        losses = [r.loss or 0.0 for r in mine]
        axes.plot([x(r) for r in mine], losses, **style(number), lw=1.4, ms=5, label=name)
    if finish:
        _finish(axes, there)


def _by_data(axes: "Axes", there: Sequence[Result]) -> None:
    keys = ("data.fraction", "optimizer.num_epochs")

    def label(result: Result) -> str:
        values = result.point.values
        words = ("{:g} of the data", "{:g} epochs")
        return ", ".join(
            w.format(values[k]) for k, w in zip(keys, words, strict=True) if k in values
        )

    for number, name in enumerate(dict.fromkeys(map(label, there))):
        mine = sorted((r for r in there if label(r) == name), key=_parameters)
        losses = [r.loss or 0.0 for r in mine]
        axes.plot([_parameters(r) for r in mine], losses, **style(number), label=name, lw=1.4, ms=5)
    _finish(axes, there)


def _model(result: Result) -> str:
    base = result.point.values.get("model.base")
    return PurePath(str(base)).name if base else "the recipe's model"


def _finish(axes: "Axes", there: Sequence[Result]) -> None:
    if not there:
        axes.text(0.5, 0.5, "no point yet", transform=axes.transAxes, ha="center")
        return
    plain_log_x(axes)
    plain_log_y(axes)
