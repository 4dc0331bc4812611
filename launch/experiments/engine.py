"""Carry out what is missing of an experiment, and say what came out.

The same for every kind. A command that is given again takes up its newest unfinished experiment:
what is done stays, what is missing or failed is run. Knows nothing of what is asked.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from launch.command import command_of, train_command
from launch.experiments import giving_up
from launch.experiments.define import Ready
from launch.experiments.place import Place
from launch.keys import to_do
from launch.local import GivenUp
from launch.stages import go_through
from pressroom.console import UserError, log, say
from pressroom.experiment import Definition, Experiment, experiments_of
from pressroom.locks import lock
from pressroom.report import experiment_page


@dataclass(frozen=True, kw_only=True)
class How:
    """How an experiment is carried out; none of it changes what comes out."""

    dry_run: bool = False
    fresh: bool = False
    """Begin anew, though the same has been asked before."""
    max_parallel: int | None = None
    """Points that run at a time on a cluster; None: as many as SLURM lets."""


def carry_out(definition: Definition, ready: Sequence[Ready], place: Place, how: How) -> None:
    """Run what is missing, and show what came out.

    Raises:
        UserError: Points failed, or what they must have in common they have not.
    """
    found = None if how.fresh else taken_up(definition)
    missing = [each for each in ready if found is None or is_missing(found, each)]
    if how.dry_run:
        say(_plan(definition, ready, missing, found))
        return
    experiment = found or Experiment.create(definition)
    say(f"{'experiment':11}{experiment.path}")
    if missing:
        log.info("%d of %d points to run", len(missing), len(definition.points))
    with lock(experiment.lock, experiment.title):
        if place.cluster:
            # submitit takes a moment that nobody else needs
            from launch.experiments.jobs import submit

            submit(experiment, missing, place, how.max_parallel)
        else:
            _in_turn(experiment, missing, place)
    found_problems = experiment_page.publish(experiment)
    say(experiment_page.text(experiment))
    for path in experiment_page.files(experiment):
        say(f"{path.stem if path == experiment.best else path.suffix[1:]:11}{path}")
    if place.cluster and missing:
        say(f"{'follow':11}pressroom runs {shlex.quote(experiment.title)}")
        return
    if found_problems:
        raise UserError("\n".join(found_problems))


def taken_up(definition: Definition) -> Experiment | None:
    """The newest experiment that asked the same; finished, it has nothing to run."""
    for experiment in experiments_of(definition.name):
        try:
            if experiment.definition().key == definition.key:
                return experiment
        except UserError as error:
            log.warning("%s", error)
    return None


def is_missing(experiment: Experiment, each: Ready) -> bool:
    """Whether a point has to be run: it is not there, not whole, or failed."""
    run = experiment.run(each.point)
    if run.given_up.is_file() and not run.adapter.is_dir():
        return False
    return to_do(run, each.keys, "train") is not None


def _in_turn(experiment: Experiment, missing: Sequence[Ready], place: Place) -> None:
    """Each missing point on this machine, one after the other; one that fails stops no other."""
    for number, each in enumerate(missing, start=1):
        run = experiment.run(each.point)
        log.info("point %d/%d: %s", number, len(missing), each.point.name)
        commands = {
            "prep": command_of("prep", run),
            "train": train_command(each.recipe, run, each.keys.dataset, place.node(each.point)),
        }
        try:
            judge = giving_up.judge(run)
            go_through(run, each.recipe, each.keys, commands, ("prep", "train"), judge)
        except GivenUp:
            log.info("%s: given up", each.point.name)
        except UserError as error:
            log.warning("%s failed: %s", each.point.name, error)


def _plan(
    definition: Definition,
    ready: Sequence[Ready],
    missing: Sequence[Ready],
    found: Experiment | None,
) -> str:
    """What would be run, a line a point."""
    lines = [f"{'experiment':11}{found.path if found else 'a new one of ' + definition.name}"]
    wanted = {each.point.name for each in missing}
    recipes = {each.point.name: each.recipe for each in ready}
    for point in definition.points:
        recipe = recipes.get(point.name)
        if recipe is None:
            peak = point.foretold["peak_gib"]
            lines.append(f"{point.name}: does not fit: the peak is {peak} GiB")
            continue
        batch = recipe.batch.arithmetic(point.ranks, recipe.sequence_length)
        lines.append(f"{point.name}: {batch if point.name in wanted else 'done already'}")
    return "\n".join(lines)
