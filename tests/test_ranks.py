"""Two ranks of every strategy: sharded as asked, the same losses as one, exact resume."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invented_articles
from ranks import run_ranks
from test_train import BF16
from training import adapter, losses, metrics, train

from data_prep.prepare import prepare
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

EXPECTED = {"ddp": "MULTI_CPU", "fsdp": "FSDP"}


def fine_tune_rank(home: str, overrides: tuple[str, ...], run: str | None) -> dict[str, Any]:
    """One rank's part of a training, and what it holds in the end."""
    os.chdir(home)
    os.environ["PRESSROOM_HOME"] = home
    from accelerate.state import AcceleratorState

    from train.sft import fine_tune

    recipe = Recipe.load("recipe.yaml", overrides)
    finished = fine_tune(recipe, run, str(prepare(recipe)))
    state = AcceleratorState()
    return {
        "run": str(finished.path),
        "distributed_type": state.distributed_type.value,
        "world_size": state.num_processes,
    }


def train_on_two(strategy: str, home: Path, *overrides: str, run: RunDir | None = None) -> RunDir:
    """Train on two ranks and see that they were two, of that strategy."""
    options = (f"parallel.strategy={strategy}", *overrides)
    prepare(Recipe.load("recipe.yaml", options))
    path = str(run.path) if run else None
    found = run_ranks(strategy, fine_tune_rank, str(home), options, path)
    for rank in found:
        assert (rank["distributed_type"], rank["world_size"]) == (EXPECTED[strategy], 2)
    assert found[0]["run"] == found[1]["run"]
    return RunDir(Path(found[0]["run"]))


@pytest.mark.parametrize("precision", [(), BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("strategy", EXPECTED)
def test_two_ranks_lose_as_one(
    make_recipe, home: Path, strategy: str, precision: tuple[str, ...]
) -> None:
    # 9 held-out rows in micro-batches of 2: the last round leaves a rank without any.
    make_recipe(articles=invented_articles(160), evaluation={"every_steps": 5})
    options = ("optimizer.num_steps=10", "optimizer.learning_rate=3e-3", *precision)
    alone = train(*options)
    together = train_on_two(strategy, home, *options)
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    evaluations = [
        [row["eval_loss"] for row in metrics(run) if "eval_loss" in row]
        for run in (together, alone)
    ]
    assert len(evaluations[0]) == 2
    assert evaluations[0] == pytest.approx(evaluations[1], abs=1e-4)
    assert [r["tokens"] for r in metrics(together) if "loss" in r] == [
        r["tokens"] for r in metrics(alone) if "loss" in r
    ]
    assert {t.dtype for t in adapter(together).values()} == {torch.float32}


@pytest.mark.parametrize("strategy", EXPECTED)
def test_two_ranks_resume_exactly(make_recipe, home: Path, strategy: str) -> None:
    make_recipe(lora={"r": 4, "alpha": 8, "dropout": 0.1})
    options = ("optimizer.num_steps=6", "checkpoint.every_steps=3", *BF16)
    undisturbed = train_on_two(strategy, home, *options)
    killed = RunDir(home / "runs" / "tiny" / "killed")
    killed.path.mkdir(parents=True)
    killed.write_recipe(Recipe.load("recipe.yaml", options))
    shutil.copytree(undisturbed.checkpoint(3), killed.checkpoint(3))
    shutil.copyfile(undisturbed.metrics, killed.metrics)
    train_on_two(strategy, home, *options, run=killed)
    assert losses(killed) == losses(undisturbed)
    first, second = adapter(undisturbed), adapter(killed)
    assert all(torch.equal(first[name], second[name]) for name in first)
