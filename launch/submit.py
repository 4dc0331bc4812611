"""`pressroom submit`, `run --cluster`, `resume`: all is checked before anything is queued.

Knows nothing of sbatch, nor of what a job does.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from launch import chain, checks
from launch.capacity import slurm_problems
from launch.chain import Launch
from launch.command import Stage
from launch.jobs import jobs_of
from launch.keys import Keys, run_of, stage_keys
from launch.plan import CHAIN, Request
from pressroom import dataset
from pressroom.base_model import geometry_of
from pressroom.cluster import Cluster
from pressroom.console import UserError, entry, log, say
from pressroom.planner.choice import option
from pressroom.planner.fits import resolve
from pressroom.planner.here import gpus_of
from pressroom.planner.table import table
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.runs import find_run


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", nargs=-1)
@click.option("--cluster", "cluster_file", required=True, help="The cluster's file.")
@click.option("--dry-run", is_flag=True, help="Show what sbatch would get; touch nothing.")
def main(recipe: str, overrides: tuple[str, ...], cluster_file: str, dry_run: bool) -> None:
    """Train on a SLURM cluster: all is checked first, the code and recipe are kept as they are."""
    start(recipe, overrides, cluster_file, ("train",), dry_run=dry_run)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--dry-run", is_flag=True, help="Show what sbatch would get; touch nothing.")
def resume(run: str, dry_run: bool) -> None:
    """Submit what of a run is missing, with the code, recipe and cluster that it has."""
    found = RunDir(find_run(run).path.absolute())
    if not found.cluster.is_file():
        raise UserError(
            f"{found.path}: was not submitted: the command that started it goes on with it"
        )
    stages = [stage for stage in CHAIN if stage in {job.stage for job in jobs_of(found)}]
    recipe, cluster = found.load_recipe(), Cluster.load(found.cluster)
    if wrong := slurm_problems(cluster, str(found.cluster)):
        raise UserError("\n".join(wrong))
    _go(_launch(recipe, cluster, found, Keys.read(found)), stages, dry_run=dry_run, keep_code=True)


def start(
    recipe_name: str,
    overrides: Sequence[str],
    cluster_file: str,
    stages: Sequence[Stage],
    *,
    dry_run: bool,
) -> None:
    """Check a recipe on a cluster, and submit those of its stages that are missing.

    Raises:
        UserError: With everything that is wrong, before anything is queued.
    """
    recipe, cluster = _read(recipe_name, overrides, cluster_file)
    needs_dataset = "prep" not in stages
    wrong = checks.problems(recipe, cluster, cluster_file, needs_dataset=needs_dataset)
    if wrong:
        raise UserError("\n".join(wrong))
    recipe, reasons = resolve(recipe, geometry_of(recipe.model), gpus_of(cluster))
    for reason in reasons:
        log.info("auto: %s", reason)
    keys = stage_keys(recipe)
    run = RunDir((run_of(recipe, keys) or RunDir.fresh(recipe)).path.absolute())
    launch = _launch(recipe, cluster, run, keys)
    _go(launch, stages, dry_run=dry_run, keep_code=False)


def _read(recipe_name: str, overrides: Sequence[str], cluster_file: str) -> tuple[Recipe, Cluster]:
    """Read both files; what is wrong with either is told together."""
    wrong = []
    try:
        recipe = Recipe.load(recipe_name, overrides)
    except UserError as error:
        wrong.append(str(error))
    try:
        cluster = Cluster.load(Path(cluster_file))
    except UserError as error:
        wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return recipe, cluster


def _launch(recipe: Recipe, cluster: Cluster, run: RunDir, keys: Keys) -> Launch:
    manifest = dataset.newest(recipe)
    rows = manifest.rows("train") if manifest else 0
    planned = option(recipe, geometry_of(recipe.model), gpus_of(cluster), rows).plan
    return Launch(run=run, recipe=recipe, cluster=cluster, keys=keys, plan=planned)


def _go(launch: Launch, stages: Sequence[Stage], *, dry_run: bool, keep_code: bool) -> None:
    run, name = launch.run, launch.recipe.name
    found = chain.requests(launch, stages)
    if dry_run:
        if "train" in stages:
            say(table(name, launch.plan) + "\n")
        for stage, each in found.items():
            say(f"# {stage}" + ("" if isinstance(each, Request) else f": job {each} does it"))
            if isinstance(each, Request):
                say(each.text)
    if not found:
        say(f"{run.path}: {', '.join(stages)} done already")
    if dry_run or not found:
        return
    recipe = launch.recipe
    if "train" in found:
        log.info(recipe.batch.arithmetic(launch.cluster.world_size, recipe.sequence_length))
    chain.submit(launch, stages, keep_code=keep_code, tell=lambda s, job: say(f"{s:10}{job}"))
    say(f"{'run':10}{run.path}")
    say(f"{'follow':10}pressroom logs {shlex.quote(f'{name}/{run.path.name}')} -f")


if __name__ == "__main__":
    entry(main)
