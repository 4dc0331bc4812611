"""The whole chain on this machine: `pressroom run RECIPE`.

    prep -> train -> evaluate -> merge -> generate

A stage's key hashes the recipe sections that it reads and the keys of its inputs. A stage whose
output bears the same key is skipped; a training whose key is new gets a new run directory, one
that was killed goes on in its own. Each stage runs as `python -m ROOM.MODULE`: knows none of
their insides.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence

import click

from launch.command import command_of, train_command
from launch.keys import Keys, run_of, stage_keys, to_do
from launch.local import run_to_end, this_node
from launch.recorded import recorded
from pressroom.base_model import bytes_to_download, model_folder
from pressroom.console import entry, log, say
from pressroom.geometry import Geometry
from pressroom.planner.here import settle
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

STAGES = ("prep", "train", "evaluate", "merge", "generate")


_dry_run = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done.")


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", nargs=-1)
@click.option("--cluster", "cluster_file", help="A cluster's file: each stage is a SLURM job.")
@_dry_run
def main(recipe: str, overrides: tuple[str, ...], cluster_file: str | None, dry_run: bool) -> None:
    """Prepare, train, evaluate, merge and generate; what is done is skipped."""
    if cluster_file:
        from launch import plan, submit  # submitit takes a moment that nobody else needs

        submit.start(recipe, overrides, cluster_file, plan.CHAIN, dry_run=dry_run)
        return
    _start(Recipe.load(recipe, overrides), STAGES, dry_run)


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", nargs=-1)
@_dry_run
def train(recipe: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Fine-tune on this machine's GPUs, or its CPU; goes on where a killed run stopped."""
    _start(Recipe.load(recipe, overrides), ("prep", "train"), dry_run)


def _start(recipe: Recipe, stages: Sequence[str], dry_run: bool) -> None:
    recipe = settle(recipe)
    if dry_run:
        say(would_do(recipe, stages))
        return
    run = run_stages(recipe, stages)
    say(f"{'run':11}{run.path}")
    for name in stages[1:]:
        output = run.output(name)
        say(f"{output.stem:11}{output}")


def would_do(recipe: Recipe, stages: Sequence[str]) -> str:
    """What `run_stages` would do, after all the checks that it makes before any work.

    A model that is not here is not brought: its size is said, and no more can be.

    Raises:
        UserError: As `run_stages`, before any work.
    """
    absent = bytes_to_download(recipe.model)
    if absent:
        recipe.require_fit(Geometry.of(model_folder(recipe.model, weights=False)))
        return (
            f"{'model':11}{recipe.model.base}: {absent / 2**30:.1f} GiB to download first; "
            "`pressroom download` brings them now"
        )
    keys = stage_keys(recipe)
    run = run_of(recipe, keys) or RunDir.fresh(recipe)
    command = _commands(recipe, run, keys)["train"]
    ranks = int(command[command.index("--num_processes") + 1])
    lines = [f"{'dataset':11}{keys.dataset}", f"{'run':11}{run.path}"]
    for number, name in enumerate(stages, start=1):
        why = to_do(run, keys, name)
        lines.append(f"[{number}/{len(stages)}] {name}: {why or 'done already'}")
        if name == "train" and why:
            lines.append(f"      {recipe.batch.arithmetic(ranks, recipe.sequence_length)}")
            lines.append(f"      {shlex.join(command)}")
    return "\n".join(lines)


def run_stages(recipe: Recipe, stages: Sequence[str]) -> RunDir:
    """Bring a recipe's stages up to date, in order.

    Returns:
        The run directory.

    Raises:
        UserError: A stage failed; those before it are kept.
    """
    keys = stage_keys(recipe)
    run = run_of(recipe, keys) or RunDir.fresh(recipe)
    commands = _commands(recipe, run, keys)  # fails where this machine cannot train the recipe
    go_through(run, recipe, keys, commands, stages)
    return run


def go_through(
    run: RunDir,
    recipe: Recipe,
    keys: Keys,
    commands: Mapping[str, Sequence[str]],
    stages: Sequence[str],
    gives_up: Callable[[], bool] = lambda: False,
) -> None:
    """Bring a run's stages up to date, in order; it is begun if it is new.

    Args:
        run: The run.
        recipe: Without `auto`.
        keys: Of the recipe.
        commands: Of each stage.
        stages: In order.
        gives_up: Asked every second of training whether it is to be ended as not worth it.

    Raises:
        UserError: A stage failed; those before it are kept.
        GivenUp: Training ended because `gives_up` said so.
    """
    if not run.path.is_dir():
        run.begin(recipe)
        run.record_stage("train", keys.train)
    for number, name in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {name}"
        why = to_do(run, keys, name)
        if why is None:
            log.info("%s: done already", title)
            continue
        log.info("%s: %s", title, why)
        run.write_recipe(recipe)  # the training sections are the same, by their key
        with recorded(run, keys, name):
            if name == "train":
                run_to_end(name, commands[name], run.preempted, gives_up)
            else:
                run_to_end(name, commands[name])


def _commands(recipe: Recipe, run: RunDir, keys: Keys) -> dict[str, list[str]]:
    """The command of each stage, on this machine."""
    here = {"train": train_command(recipe, run, keys.dataset, this_node(recipe))}
    return here | {stage: command_of(stage, run) for stage in STAGES if stage != "train"}


if __name__ == "__main__":
    entry(main)
