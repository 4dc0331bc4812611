"""What is asked, settled point by point: each one's recipe, keys and prediction, or all mistakes.

Everything that can be known before anything runs is looked at here. Knows nothing of how points
are run.
"""

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from launch import snapshot
from launch.capacity import slurm_problems
from launch.checks import recipe_problems, warn
from launch.command import train_command
from launch.experiments.place import Place
from launch.keys import Keys, stage_keys
from pressroom.base_model import geometry_of
from pressroom.console import UserError
from pressroom.experiment import Definition, Kind, Point
from pressroom.files import sha256_json
from pressroom.planner.choice import option
from pressroom.planner.fits import resolve
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

MOST_POINTS = 50
"""Without being asked whether that many are meant."""
_MOST_NAMED = 3
_LIBRARIES = ("pressroom", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a user asks."""

    kind: Kind
    name: str | None
    """None: the recipe's, and the kind."""
    recipe_name: str
    overrides: Sequence[str]
    axes: Mapping[str, list[Any]]
    points: Sequence[Point]
    settings: Mapping[str, Any]
    place: Place
    needs: Callable[[Recipe], Iterator[str]] = lambda recipe: iter(())
    """What else is wrong with a point's recipe for this kind of experiment."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A point that can be run."""

    point: Point
    recipe: Recipe
    """Without `auto`."""
    keys: Keys


class _Mistakes:
    """What is wrong, each thing once, with the points that it is wrong with."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._all = len(points)
        self._found: dict[str, list[str]] = {}

    @contextmanager
    def at(self, *names: str) -> Iterator[None]:
        """Note what the block raises as being wrong with some points."""
        try:
            yield
        except UserError as error:
            for line in str(error).split("\n") if "\n " not in str(error) else [str(error)]:
                self.add(line, *names)

    def add(self, what: str, *names: str) -> None:
        """Note it."""
        known = self._found.setdefault(what, [])
        known += [name for name in names if name not in known]

    def raise_all(self) -> None:
        """Tell everything.

        Raises:
            UserError: Something is wrong.
        """
        if self._found:
            raise UserError("\n".join(f"{self._at(n)}{what}" for what, n in self._found.items()))

    def _at(self, names: Sequence[str]) -> str:
        """Before what is wrong: nothing, if it is wrong with every point."""
        if len(names) in (0, self._all):
            return ""
        more = f" and {len(names) - _MOST_NAMED} others" if len(names) > _MOST_NAMED else ""
        return f"point {', '.join(names[:_MOST_NAMED])}{more}: "


def define(question: Question) -> tuple[Definition, list[Ready]]:
    """Settle every point.

    Returns:
        The definition, and the points that can be run: not those that the planner says do not fit.

    Raises:
        UserError: With everything that is wrong with any of them.
    """
    mistakes, place = _Mistakes(question.points), question.place
    base: Recipe | None = None
    with mistakes.at():
        base = Recipe.load(question.recipe_name, question.overrides)
    shapes = dict.fromkeys((p.nodes, p.ranks_per_node) for p in question.points)
    for shape in shapes if place.cluster else ():
        names = [p.name for p in question.points if (p.nodes, p.ranks_per_node) == shape]
        for problem in slurm_problems(place.cluster_of(*shape), place.file):
            mistakes.add(problem, *names)
    ready = []
    for point in question.points:
        with mistakes.at(point.name):
            ready.append(_settle(question, point))
    mistakes.raise_all()
    assert base
    if place.cluster:
        warn(base, place.cluster, place.file)
    fitting = [each for each in ready if each.point.fits]
    if not fitting:
        raise UserError(
            f"no point fits {place.device}: `pressroom plan {question.recipe_name}` says what would"
        )
    return _definition(question, base, ready), fitting


def load(recipe_name: str, overrides: Sequence[str], point: Point) -> Recipe:
    """The recipe of a point: its own values take the place of the user's."""
    own = {key: f"{key}={json.dumps(value)}" for key, value in point.overrides.items()}
    kept = [text for text in overrides if text.partition("=")[0].strip() not in own]
    return Recipe.load(recipe_name, [*kept, *own.values()])


def _settle(question: Question, point: Point) -> Ready:
    """A point's recipe, keys and prediction.

    Raises:
        UserError: With all that is wrong with it.
    """
    place = question.place
    recipe = load(question.recipe_name, question.overrides, point)
    if problems := list(question.needs(recipe)):
        raise UserError("\n".join(problems))
    gpus = place.gpus(point.nodes, point.ranks_per_node)
    if place.cluster:
        wrong = recipe_problems(
            recipe,
            place.cluster_of(point.nodes, point.ranks_per_node),
            place.file,
            needs_dataset=False,
            may_not_fit=True,
        )
        if wrong:
            raise UserError("\n".join(wrong))
    geometry = geometry_of(recipe.model)
    recipe.require_fit(geometry)
    settled, _ = resolve(recipe, geometry, gpus)
    keys = stage_keys(settled)
    if not place.cluster:
        train_command(settled, RunDir(Path()), keys.dataset, place.node(point))
    planned = option(settled, geometry, gpus).plan
    foretold = {
        "tokens_per_second_per_gpu": round(planned.tokens_per_second_per_gpu, 1),
        "peak_gib": round(planned.peak_gib, 2),
        "fits": planned.fits or not place.num_gpus,
        "parameters": geometry.num_weights,
    }
    return Ready(point=replace(point, foretold=foretold), recipe=settled, keys=keys)


def _definition(question: Question, base: Recipe, ready: Sequence[Ready]) -> Definition:
    place = question.place
    points = tuple(each.point for each in ready)
    asked = [
        question.kind,
        base.to_dict(),
        [{**asdict(p), "foretold": None} for p in points],
        [[each.recipe.to_dict(), each.keys.train] for each in ready],
        dict(question.settings),
        place.plain,
        place.device,
    ]
    return Definition(
        kind=question.kind,
        name=question.name or f"{base.name}-{question.kind}",
        recipe=base.to_dict(),
        axes={key: list(values) for key, values in question.axes.items()},
        points=points,
        settings=dict(question.settings),
        device=place.device,
        cluster=place.plain,
        key=sha256_json(asked)[:16],
        command=shlex.join(["pressroom", *sys.argv[1:]]),
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        versions={"python": platform.python_version()} | {n: version(n) for n in _LIBRARIES},
        commit=snapshot.commit(),
    )


def require_number(points: Sequence[Point], *, meant: bool) -> None:
    """See that so many points are meant.

    Raises:
        UserError: They are many, and nobody has said so.
    """
    if len(points) > MOST_POINTS and not meant:
        raise UserError(
            f"{len(points)} points: more than {MOST_POINTS} are run only with --yes, which says "
            "that so many are meant"
        )
