"""What the first node of a training decides for all: which run, on which dataset.

Under `pressroom submit` that was decided at submission; under sbatch it is decided here, as
`pressroom train` would. Knows nothing of how nodes talk to each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.allocation import Allocation, node_of
from launch.command import command_of, train_command
from launch.jobs import Start, fruitless, now, record_start, starts_of
from launch.keys import Keys, run_of, stage_keys, to_do
from launch.local import run_to_end
from pressroom.cluster import FRUITLESS_STARTS, Cluster
from pressroom.console import UserError, log
from pressroom.planner.here import settle
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What every node is to train."""

    run: RunDir
    keys: Keys

    def to_json(self) -> dict[str, Any]:
        """For the other nodes, which need no more than this."""
        return {"run": str(self.run.path), "dataset": str(self.keys.dataset)}


def submitted(path: str) -> Orders:
    """The orders that were left in a run at submission."""
    run = RunDir(Path(path))
    return Orders(run=run, keys=Keys.read(run))


def by_name(recipe_name: str, overrides: Sequence[str], here: Allocation, num_gpus: int) -> Orders:
    """Find the run of a recipe, or begin it, and prepare its dataset where that is missing.

    Args:
        recipe_name: The recipe.
        overrides: `key=value`.
        here: The job.
        num_gpus: Of each node.

    Raises:
        UserError: The recipe, the model or the articles are wrong, or cannot be trained here.
    """
    recipe = settle(Recipe.load(recipe_name, overrides), nodes=len(here.hosts))
    keys = stage_keys(recipe)
    run = run_of(recipe, keys) or RunDir.fresh(recipe)
    run = RunDir(run.path.absolute())
    train_command(recipe, run, keys.dataset, node_of(here, num_gpus))  # fails where it cannot
    if not run.path.is_dir():
        run.begin(recipe)
        run.record_stage("train", keys.train)
    run.write_recipe(recipe)  # the training sections are the same, by their key
    if why := to_do(run, keys, "prep"):
        log.info("%s: preparing while the nodes wait; `slurm/prep.sh` before takes no GPUs", why)
        run_to_end("prep", command_of("prep", run))
    return Orders(run=run, keys=keys)


def begin(orders: Orders, here: Allocation) -> None:
    """Remember that a job starts, unless it has started often without getting anywhere.

    Raises:
        UserError: It has; or the dataset is not there.
    """
    run = orders.run
    if to_do(run, orders.keys, "prep"):
        raise UserError(f"{orders.keys.dataset}: the dataset that was submitted is gone")
    most = Cluster.load(run.cluster).fruitless_starts if run.cluster.is_file() else FRUITLESS_STARTS
    times = fruitless(starts_of(run), here.name, run.newest_step)
    if times >= most:
        raise UserError(
            f"{times} start{'s' * (times > 1)} without a checkpoint newer than step "
            f"{run.newest_step}, so it is not queued again: see the ranks' logs; "
            "checkpoint.every_steps, or the time between the signal and the end, may be too long "
            "for this queue"
        )
    start = Start(
        job=here.name,
        restart=here.restart,
        stage="train",
        nodes=here.hosts,
        step=run.newest_step,
        started=now(),
    )
    record_start(run, start)
