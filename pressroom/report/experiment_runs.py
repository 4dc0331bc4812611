"""What the runs of an experiment say: how each point stands, its losses and its speed.

Everything is read from the runs; nothing is kept apart. Knows nothing of what was asked of the
points, nor of how results look.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from pressroom.experiment import Definition, Experiment, Point
from pressroom.files import read_json
from pressroom.locks import is_locked
from pressroom.run_dir import RunDir
from pressroom.standing import built, row, standing

Row = dict[str, float]
DONE = ("finished", "given up")
"""How points stand of which nothing is missing."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A point and what its run says."""

    point: Point
    state: str
    """As `standing.standing` calls it; `missing` before it has begun, `does not fit` where the
    planner would not have it tried."""
    note: str = ""
    """Why it failed or was given up."""
    rows: Sequence[Row] = field(default=(), repr=False)
    """Of steps, in order, each step once."""
    held_out: dict[int, float] = field(default_factory=dict)
    """Step -> held-out loss."""
    seconds: float | None = None
    """Of the training as a whole, loading and saving included; None while it is not over."""

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is missing."""
        return self.state in DONE

    @property
    def losses(self) -> dict[int, float]:
        """Step -> training loss."""
        return {int(r["step"]): r["loss"] for r in self.rows if "loss" in r}

    @property
    def loss(self) -> float | None:
        """The held-out loss of its last evaluation."""
        return self.held_out[max(self.held_out)] if self.held_out else None

    @property
    def tokens(self) -> float:
        """Of all steps."""
        return sum(r.get("tokens", 0.0) for r in self.rows)

    @property
    def gpu_hours(self) -> float:
        """In steps, of all its ranks."""
        return sum(r.get("step_seconds", 0.0) for r in self.rows) * self.point.ranks / 3600

    def after(self, warmup_steps: int) -> Sequence[Row]:
        """The rows of the steps that count."""
        return [r for r in self.rows if r["step"] > warmup_steps and "step_seconds" in r]


def results(experiment: Experiment, definition: Definition) -> list[Result]:
    """What each point's run says, in the order of the points."""
    return [_result(point, experiment.run(point)) for point in definition.points]


def _result(point: Point, run: RunDir) -> Result:
    if not run.recipe.is_file():
        return Result(point=point, state="missing" if point.fits else "does not fit")
    rows, held = _rows(run)
    return Result(
        point=point,
        state=standing(run),
        note=_note(run),
        rows=rows,
        held_out=held,
        seconds=built(run.stages_file, partial(_seconds, run), []),
    )


def held_out(run: RunDir) -> dict[int, float]:
    """Step -> held-out loss of each evaluation so far."""
    return _rows(run)[1]


def _rows(run: RunDir) -> tuple[list[Row], dict[int, float]]:
    """Rows of steps and of evaluations; of a step that was done again, the last."""
    steps: dict[int, Row] = {}
    held: dict[int, float] = {}
    text = run.metrics.read_text("utf-8", "replace") if run.metrics.is_file() else ""
    for line in text.splitlines():
        found = row(line)
        if found and "loss" in found:
            steps[int(found["step"])] = found
        elif found and "eval_loss" in found:
            held[int(found["step"])] = found["eval_loss"]
    return [steps[step] for step in sorted(steps)], dict(sorted(held.items()))


def _seconds(run: RunDir) -> float | None:
    found = run.stages.get("train", {}).get("seconds")
    return None if found is None else float(found)


def _note(run: RunDir) -> str:
    if run.error.is_file() and not is_locked(run.lock):
        lines = run.error.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""
    if run.given_up.is_file() and not run.adapter.is_dir():
        try:
            found = read_json(run.given_up, "")
            return (
                f"{found['loss']:.4f} at step {found['step']}, above the median "
                f"{found['median']:.4f} of {found['others']} others"
            )
        except (KeyError, TypeError, json.JSONDecodeError):
            return ""
    return ""
