"""Hopeless points of a sweep end early, by the median rule.

At an evaluation, from the second on, a point is given up when its lowest held-out loss so far is
above the median of the lowest losses that the others had at the same step; three others must have
been there (Golovin et al. 2017, Google Vizier, section 3.2.2). Only points that learn from the
same rows in steps of the same size are compared. Whoever starts the ranks looks each second: on
this machine and in every job of a cluster alike. Knows nothing of how a run is ended.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from launch.jobs import now
from pressroom.console import log
from pressroom.dataset import Manifest
from pressroom.experiment import Definition, Experiment, Point
from pressroom.files import publish_json
from pressroom.report.experiment_runs import held_out
from pressroom.run_dir import RunDir
from pressroom.standing import num_steps

FEWEST_OTHERS = 3
FIRST_EVALUATION = 2
_SAME = ("batch.", "sequence_length", "optimizer.num_", "data.", "model.", "prompt.", "evaluation.")
"""Keys that points must have in common to be compared at the same step."""

Losses = Mapping[int, float]
"""Step -> held-out loss."""


def verdict(mine: Losses, others: Sequence[Losses]) -> dict[str, float] | None:
    """Why a point is hopeless at its last evaluation; None where it is not.

    >>> good = {10: 2.0, 20: 1.5}
    >>> verdict({10: 3.0, 20: 2.9}, [good] * 3)
    {'step': 20, 'loss': 2.9, 'median': 1.5, 'others': 3}
    >>> verdict({10: 3.0}, [good] * 3), verdict({10: 3.0, 20: 2.9}, [good] * 2)
    (None, None)
    """
    if len(mine) < FIRST_EVALUATION:
        return None
    step = max(mine)
    there = [min(v for s, v in each.items() if s <= step) for each in others if step in each]
    if len(there) < FEWEST_OTHERS:
        return None
    lowest, median = min(mine.values()), statistics.median(there)
    if lowest <= median:
        return None
    return {"step": step, "loss": lowest, "median": median, "others": len(there)}


def judge(run: RunDir) -> Callable[[], bool]:
    """Whether a run that trains is to be given up; asked again and again. Of most runs, never."""
    if not run.is_point:
        return lambda: False
    experiment = Experiment(run.path.parent)
    definition = experiment.definition()
    if not definition.settings.get("gives_up"):
        return lambda: False
    rivals = [experiment.run(other) for other in comparable(definition, run.path.name)]
    seen: list[int] = [0]
    return partial(_look, run, rivals, seen)


def comparable(definition: Definition, name: str) -> list[Point]:
    """The other points that learn from the same rows, in steps of the same size."""

    def same(point: Point) -> dict[str, object]:
        return {k: v for k, v in point.overrides.items() if k.startswith(_SAME)}

    mine = same(definition.point(name))
    return [p for p in definition.points if p.name != name and same(p) == mine]


def _look(run: RunDir, rivals: Sequence[RunDir], seen: list[int]) -> bool:
    """Judge at each new evaluation; what has been decided stays so."""
    if run.given_up.is_file():
        return True
    mine = held_out(run)
    if len(mine) == seen[0]:
        return False
    seen[0] = len(mine)
    recipe = run.load_recipe()
    if max(mine) == num_steps(recipe, Manifest.read(run.dataset)):
        return False  # it ends by itself
    found = verdict(mine, [held_out(rival) for rival in rivals])
    if found is None:
        return False
    publish_json(run.given_up, {**found, "when": now()})
    log.info(
        "given up: held-out loss %.4f at step %d, and the median of %d others is %.4f",
        *(found["loss"], found["step"], found["others"], found["median"]),
    )
    return True
