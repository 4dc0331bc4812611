"""Training ends when the held-out loss does not fall any more, on every rank and after a resume."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from training import adapter, losses, metrics, train
from watch import watched_training

from data_prep.prepare import prepare
from launch.stages import stage_keys
from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import checkpoint
from train.early_stopping import is_over

RISING = (
    "optimizer.learning_rate=0.3",  # the held-out loss falls, and then rises
    "optimizer.num_steps=30",
    "evaluation.every_steps=1",
    "evaluation.early_stopping=3",
)
EACH_KEPT = ("checkpoint.every_steps=1", "checkpoint.keep_last=50", "batch.micro_batch_size=4")


def held_out_losses(run: RunDir) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in metrics(run) if "eval_loss" in row}


def stops_at(found: dict[int, float], patience: int) -> int:
    """The step at which a person would stop who reads the losses from the first on."""
    lowest, since = float("inf"), 0
    for step, loss in found.items():
        lowest, since = (loss, 0) if loss < lowest else (lowest, since + 1)
        if since == patience:
            return step
    raise AssertionError(f"never: {found}")


def test_training_ends_when_the_held_out_loss_has_not_fallen(make_recipe, caplog) -> None:
    make_recipe()
    caplog.set_level(logging.INFO, logger="pressroom")
    run = train(*RISING)
    found = held_out_losses(run)
    last = max(losses(run))
    assert 4 <= last < 30
    assert max(found) == last == stops_at(found, 3)
    assert f"stopped at step {last}: the held-out loss was lowest at step {last - 3}" in caplog.text
    assert checkpoint.newest(run).path == run.checkpoint(last)
    assert run.adapter.is_dir()


def test_a_resumed_run_stops_where_the_undisturbed_one_does(make_recipe, home: Path) -> None:
    make_recipe()
    options = (*RISING, *EACH_KEPT)
    undisturbed = train(*options)
    last = max(losses(undisturbed))
    for step in (last - 1, last):
        killed = RunDir(home / "runs" / "tiny" / f"killed-{step}")
        killed.path.mkdir(parents=True)
        killed.write_recipe(Recipe.load("recipe.yaml", options))
        shutil.copytree(undisturbed.checkpoint(step), killed.checkpoint(step))
        shutil.copyfile(undisturbed.metrics, killed.metrics)
        train(*options, run=killed)
        assert losses(killed) == losses(undisturbed)
        assert held_out_losses(killed) == held_out_losses(undisturbed)
        first, second = adapter(undisturbed), adapter(killed)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_ranks_stop_together(make_recipe, home: Path) -> None:
    make_recipe()
    alone = held_out_losses(train(*RISING))
    options = ("parallel.strategy=ddp", *RISING)
    prepare(Recipe.load("recipe.yaml", options))
    found = run_ranks("ddp", watched_training, str(home), options)
    assert [rank["world_size"] for rank in found] == [2, 2]
    together = held_out_losses(RunDir(Path(found[0]["run"])))
    assert max(together) == max(alone)
    assert list(together.values()) == pytest.approx(list(alone.values()), abs=1e-3)
    assert len({len(rank["gradients"]) for rank in found}) == 1


def test_a_loss_that_is_not_a_number_is_no_new_lowest() -> None:
    assert is_over([2.0, float("nan"), float("nan")], 2)
    assert not is_over([2.0, float("nan"), 1.9], 2)


def test_it_needs_evaluations(make_recipe) -> None:
    make_recipe()
    with pytest.raises(UserError, match=r"evaluation\.early_stopping: counts evaluations: give"):
        Recipe.load("recipe.yaml", ["evaluation.early_stopping=2"])
    with pytest.raises(UserError, match=r"did you mean evaluation\.early_stopping"):
        Recipe.load("recipe.yaml", ["evaluation.early_stopping_patience=2"])


def test_it_is_another_training(make_recipe) -> None:
    make_recipe()
    options = ((), ("evaluation.every_steps=2",), ("evaluation.every_steps=3",))
    keys = [stage_keys(Recipe.load("recipe.yaml", o)).train for o in options]
    assert len(set(keys)) == 1  # evaluating alone changes nothing
    stopped = [
        stage_keys(Recipe.load("recipe.yaml", (*o, "evaluation.early_stopping=2"))).train
        for o in options[1:]
    ]
    assert len({*keys, *stopped}) == 3
