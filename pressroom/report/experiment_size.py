"""A size experiment's answer: does a larger model, more data or longer training pay.

Where there are enough points a power law is fitted to the held-out losses, and how far it is off
is said. Knows nothing of files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from pressroom.experiment import Definition
from pressroom.report.experiment_answer import Answer, failures, num
from pressroom.report.experiment_panels import figure
from pressroom.report.experiment_runs import Result
from pressroom.report.experiment_size_panels import panels

POINTS_A_PARAMETER = 2
"""Fewer points than this for each fitted number say nothing of how well it fits."""
LEAST_FACTOR = 2.0
"""Between the smallest and the largest of what a law is fitted over."""


@dataclass(frozen=True)
class Law:
    """loss = factor * product of what ** exponent, fitted to logarithms by least squares."""

    factor: float
    exponents: dict[str, float]
    residual: float
    """Root mean square of the losses over the law, less one."""
    points: int

    def __call__(self, values: dict[str, float]) -> float:
        """The loss that it foretells."""
        return float(self.factor * math.prod(values[n] ** e for n, e in self.exponents.items()))

    def __str__(self) -> str:
        terms = " ".join(f"{name}^{exponent:+.3f}" for name, exponent in self.exponents.items())
        return (
            f"loss = {self.factor:.3g} {terms} over {self.points} points, off by "
            f"{self.residual:.1%} (root mean square)"
        )


def fit(losses: Sequence[float], over: Mapping[str, Sequence[float]]) -> Law | None:
    """A power law of held-out losses; None where there are too few points, or nothing varies.

    No constant is taken off for what no model can learn: over few points it could not be told
    from the exponents.

    Args:
        losses: Of each point.
        over: Name -> its value at each point; one that hardly varies is left out.

    >>> law = fit([4.0, 2.0, 1.0, 0.5], {"tokens": [1e3, 1e4, 1e5, 1e6]})
    >>> round(law.exponents["tokens"], 3), round(law.residual, 6)
    (-0.301, 0.0)
    """
    used = {n: v for n, v in over.items() if v and min(v) > 0 and max(v) / min(v) >= LEAST_FACTOR}
    used = {n: v for n, v in used.items() if len(set(v)) > 1}
    if not used or len(losses) < POINTS_A_PARAMETER * (len(used) + 1) or min(losses) <= 0:
        return None
    matrix = np.column_stack([np.ones(len(losses)), *(np.log(v) for v in used.values())])
    solved, _, rank, _ = np.linalg.lstsq(matrix, np.log(losses), rcond=None)
    if rank < matrix.shape[1]:
        return None
    off = np.asarray(losses) / np.exp(matrix @ solved) - 1
    exponents = dict(zip(used, map(float, solved[1:]), strict=True))
    return Law(float(np.exp(solved[0])), exponents, float(np.sqrt(np.mean(off**2))), len(losses))


def answer(definition: Definition, results: Sequence[Result]) -> Answer:
    """The answer, as far as it is there."""
    done = [r for r in results if r.state == "finished" and r.loss is not None]
    rows = [_cells(result) for result in results]
    unit = "GPU" if definition.device != "cpu" else "CPU-rank"
    head = ("model", "parameters", "data", "tokens", "epochs", f"{unit}-hours", "held-out loss", "")
    laws = _laws(done)
    return Answer(
        head=head,
        rows=rows,
        figures=[*map(_values, results), *({"law": n, **vars(law)} for n, law in laws.items())],
        panels=panels(results, laws.get("cost"), unit),
        notes=_notes(done, laws, unit),
        problems=failures(results),
        best=min(done, key=lambda r: r.loss or math.inf).point if done else None,
    )


def _laws(done: Sequence[Result]) -> dict[str, Law]:
    losses = [r.loss or 0.0 for r in done]
    sizes = {
        "parameters": [float(r.point.foretold.get("parameters", 0)) for r in done],
        "tokens": [r.tokens for r in done],
    }
    found = {
        "size": fit(losses, sizes),
        "cost": fit(losses, {"hours": [r.gpu_hours for r in done]}),
    }
    return {name: law for name, law in found.items() if law}


def model_of(result: Result) -> str:
    """A model as the legend calls it."""
    base = result.point.values.get("model.base")
    return PurePath(str(base)).name if base else "the recipe's model"


def _cells(result: Result) -> list[str]:
    values = result.point.values
    loss = f"{result.loss:.4f}" if result.loss is not None else "-"
    state = "" if result.state == "finished" else result.state
    return [
        model_of(result),
        figure(float(result.point.foretold.get("parameters", 0))),
        f"{values['data.fraction']:.4g}" if "data.fraction" in values else "-",
        num(result.tokens) if result.rows else "-",
        f"{values['optimizer.num_epochs']:g}" if "optimizer.num_epochs" in values else "-",
        num(result.gpu_hours, 3) if result.rows else "-",
        loss,
        state,
    ]


def _values(result: Result) -> dict[str, Any]:
    return {
        "point": result.point.name,
        **result.point.values,
        "parameters": result.point.foretold.get("parameters"),
        "tokens": result.tokens,
        "gpu_hours_in_steps": result.gpu_hours,
        "held_out_loss": result.loss,
        "state": result.state,
    }


def _notes(done: Sequence[Result], laws: dict[str, Law], unit: str) -> list[str]:
    notes = [
        "Held-out loss of the last evaluation, in nats a token, on the same held-out articles at "
        f"every point; tokens are those trained on, {unit}-hours those in steps."
    ]
    if "size" in laws:
        notes.append(f"Power law: {laws['size']}.")
    if "cost" in laws:
        notes.append(f"Over cost: {laws['cost']}.")
    if not laws:
        notes.append(f"No law is fitted: {len(done)} finished points are too few, or too alike.")
    return notes
