"""A sweep's answer: points ranked by held-out loss, and what the settings do to it.

Knows nothing of files.
"""

from collections.abc import Sequence
from typing import Any

from pressroom.experiment import Definition
from pressroom.report.experiment_answer import Answer, failures, num
from pressroom.report.experiment_runs import Result
from pressroom.report.experiment_sweep_panels import panels

_ORDER = ("finished", "given up", "running")


def answer(definition: Definition, results: Sequence[Result]) -> Answer:
    """The answer, as far as it is there."""
    order = ranked(results)
    done = [result for result in order if result.state == "finished" and result.loss is not None]
    keys = list(definition.axes)
    rows = [_cells(number, result, keys) for number, result in enumerate(order, start=1)]
    head = ("rank", *keys, "held-out loss", "lowest", "at step", "rank-hours", "")
    best = done[0].point if done else None
    return Answer(
        head=head,
        rows=rows,
        figures=[_values(number, result) for number, result in enumerate(order, start=1)],
        panels=panels(keys, order),
        notes=_notes(done, results),
        problems=failures(results),
        best=best,
    )


def ranked(results: Sequence[Result]) -> list[Result]:
    """The best first: by the last held-out loss of what has finished, then what was given up."""

    def key(result: Result) -> tuple[int, float]:
        place = _ORDER.index(result.state) if result.state in _ORDER else len(_ORDER)
        known = result.loss is not None and result.loss == result.loss
        return place, result.loss if known and result.loss is not None else float("inf")

    return sorted(results, key=key)


def _cells(number: int, result: Result, keys: Sequence[str]) -> list[str]:
    held = result.held_out
    lowest = min(held, key=lambda step: held[step], default=None)
    state = "" if result.state == "finished" else result.state
    note = result.note if result.state == "given up" else ""
    return [
        str(number) if result.state == "finished" else "-",
        *(_shown(result.point.values.get(key)) for key in keys),
        f"{result.loss:.4f}" if result.loss is not None else "-",
        f"{held[lowest]:.4f}" if lowest is not None else "-",
        f"{lowest:,}" if lowest is not None else "-",
        num(result.gpu_hours, 3) if result.rows else "-",
        f"{state}: {note}" if note else state,
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(number: int, result: Result) -> dict[str, Any]:
    return {
        "rank": number if result.state == "finished" else None,
        "point": result.point.name,
        "values": result.point.values,
        "state": result.state,
        "held_out_loss": result.loss,
        "held_out": {str(step): loss for step, loss in result.held_out.items()},
        "gpu_hours_in_steps": result.gpu_hours,
    }


def _notes(done: Sequence[Result], results: Sequence[Result]) -> list[str]:
    notes = ["Ranked by the held-out loss of the last evaluation, in nats a token."]
    if given := sum(result.state == "given up" for result in results):
        notes.append(
            f"{given} given up by the median rule: above the median of at least three others at "
            "the same step, from the second evaluation on."
        )
    if done:
        values = " ".join(f"{k}={_shown(v)}" for k, v in done[0].point.values.items())
        notes.append(f"Best: {values}; best.yaml is its recipe.")
    return notes
