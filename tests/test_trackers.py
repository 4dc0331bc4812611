"""Trackers get the figures of metrics.jsonl, and no secret gets to them."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from training import losses, metrics, train

from launch.command import Node, train_command
from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import trainer


def board(run: RunDir, tag: str) -> dict[int, float]:
    """Step -> value, as TensorBoard reads a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_tensorboard_has_the_figures_of_every_step(make_recipe) -> None:
    make_recipe(evaluation={"every_steps": 3})
    run = train()
    assert board(run, "train/loss") == pytest.approx(losses(run))
    rows = [row for row in metrics(run) if "loss" in row]
    found = board(run, "train/tokens_per_second_per_gpu")
    assert list(found.values()) == pytest.approx([row["tokens_per_second_per_gpu"] for row in rows])
    assert set(board(run, "eval/loss")) == {3, 6}
    passes = board(run, "train/epoch")[6]  # over the rows, not over the run
    assert passes == pytest.approx(6 * 4 / Manifest.read(run.dataset).rows("train"))


def test_a_resumed_run_replaces_the_steps_it_does_again(make_recipe) -> None:
    import shutil

    make_recipe()
    options = ("optimizer.num_steps=6", "checkpoint.every_steps=2")
    run = train(*options)
    shutil.rmtree(run.checkpoint(6))
    shutil.rmtree(run.adapter)
    train(*options, run=run)
    found = board(run, "train/loss")
    assert found == pytest.approx(losses(run))
    assert list(found) == [1, 2, 3, 4, 5, 6]


def test_no_tracker_is_none(make_recipe) -> None:
    make_recipe(tracking={"trackers": []})
    run = train("optimizer.num_steps=1")
    assert not run.tensorboard.exists()


def test_a_tracker_that_is_missing_is_named_before_any_work(make_recipe) -> None:
    recipe = make_recipe(tracking={"trackers": ["tensorboard", "wandb", "trackio"]})
    with pytest.raises(UserError, match="wandb, trackio not installed: pip install wandb trackio"):
        train_command(recipe, RunDir(Path("x")), Path("d"), Node(num_gpus=0, num_cpus=2))
    with pytest.raises(UserError, match="wandb, trackio not installed"):
        train("optimizer.num_steps=1")


def test_wandb_gets_names_figures_and_no_secret(
    make_recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through transformers' integration, with a wandb that writes down what it is told."""
    told: dict[str, Any] = {"init": None, "log": [], "config": {}}
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    module.run = None

    def init(**keywords: Any) -> None:
        told["init"] = keywords
        module.run = types.SimpleNamespace(_label=lambda **kw: None, id="x", name="x", summary={})

    class Config(dict):
        def update(self, values: Any, allow_val_change: bool = False) -> None:
            told["config"] |= values

    module.init, module.config = init, Config()
    module.log = lambda values, **keywords: told["log"].append(values)
    module.finish = lambda: None
    errors = types.ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = ValueError
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", errors)
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-wandb")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwx")
    make_recipe(tracking={"trackers": ["wandb"]})
    run = train("optimizer.num_steps=2")
    name = f"tiny-{run.path.name}"
    assert told["init"] == {"project": "pressroom", "name": name}
    steps = [row for row in told["log"] if "train/loss" in row]
    assert [row["train/loss"] for row in steps] == list(losses(run).values())
    assert "train/tokens_per_second_per_gpu" in steps[0]
    everything = repr(told) + "".join(
        path.read_text(errors="replace") for path in run.path.rglob("*") if path.is_file()
    )
    assert "a-secret-of-wandb" not in everything
    assert "hf_abcdef" not in everything


def test_no_secret_reaches_the_training_arguments(make_recipe, monkeypatch) -> None:
    secrets = {
        "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwx",
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
        "MLFLOW_TRACKING_PASSWORD": "a-password-of-mlflow",
        "MEDIASTACK_KEY": "a-key-of-mediastack",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    recipe = make_recipe()
    arguments = trainer.training_arguments(recipe, RunDir(Path("runs/tiny/x")), 1, 20)
    text = repr(vars(arguments)) + json.dumps(arguments.to_dict(), default=repr)
    assert not [name for name, value in secrets.items() if value in text]
    assert arguments.hub_token is None
    assert arguments.push_to_hub is False
    assert arguments.trackio_static_space_id is False  # None would publish the run
    assert Recipe.load("recipe.yaml").tracking.trackers == ("tensorboard",)
