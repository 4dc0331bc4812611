"""Samples in mid-training: the model's own texts, which change nothing that is trained later."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ranks import run_ranks
from training import losses, metrics, train
from watch import watched_training

from data_prep.prepare import prepare
from generate import commands, sample
from pressroom.console import UserError
from pressroom.geometry import SIZES
from pressroom.planner.choice import Gpus, choose
from pressroom.planner.gpu_kinds import kind_of
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.samples import Sampling
from train import trackers


def samples(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.samples.read_text().splitlines()]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_later_losses_are_those_without_samples_bit_by_bit(make_recipe, temperature: float) -> None:
    make_recipe(
        lora={"r": 4, "alpha": 8, "dropout": 0.1},  # draws random numbers
        generation={"titles": 1, "max_new_tokens": 6, "temperature": temperature},
    )
    without = train()
    with_samples = train("tracking.sample_every_steps=2")
    assert losses(with_samples) == losses(without)
    assert not without.samples.exists()
    assert [row["step"] for row in samples(with_samples)] == [2, 2, 4, 4, 6, 6]


def test_they_are_what_the_model_of_that_step_writes(make_recipe) -> None:
    make_recipe(tracking={"sample_every_steps": 3, "trackers": ["tensorboard"]})
    run = train()
    first, last = ([r for r in samples(run) if r["step"] == step] for step in (3, 6))
    recipe = run.load_recipe()
    how = Sampling(max_new_tokens=recipe.generation.max_new_tokens)
    afterwards = sample.beside_base(run, recipe, how)
    for row, later in zip(last, afterwards, strict=True):
        assert row.pop("step") == 6
        later.pop("base")
        assert row == later  # the prompt, the title, what the article really says, the text
    assert [row["tuned"]["text"] for row in first] != [row["tuned"]["text"] for row in last]
    assert last[0]["prompt"] == "city!"
    assert last[1]["reference"]


def test_generating_afterwards_keeps_them(make_recipe) -> None:
    from click.testing import CliRunner

    make_recipe(tracking={"sample_every_steps": 6, "trackers": []})
    run = train()
    for _ in range(2):
        done = CliRunner().invoke(commands.main, ["generate", str(run.path)])
        assert done.exit_code == 0, done.output
        assert [row.get("step") for row in samples(run)] == [6, 6, 6, None, None, None]


def test_a_resumed_run_replaces_those_that_it_writes_again(make_recipe) -> None:
    import shutil

    make_recipe(tracking={"sample_every_steps": 2, "trackers": []})
    options = ("checkpoint.every_steps=2",)
    run = train(*options)
    before = run.samples.read_text()
    shutil.rmtree(run.checkpoint(6))
    shutil.rmtree(run.adapter)
    with run.samples.open("a") as file:
        file.write('{"step": 6, "prompt": "cut by a ki')
    train(*options, run=run)
    assert run.samples.read_text() == before


def test_trackers_get_the_texts(make_recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_recipe(tracking={"sample_every_steps": 3, "trackers": ["tensorboard"]})
    run = train()
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    told = {
        e.step: e.tensor_proto.string_val[0].decode()
        for e in events.Tensors("samples/text_summary")
    }
    assert list(told) == [3, 6]
    for row in samples(run):
        assert row["tuned"]["text"].split("\n")[0] in told[row["step"]]
    # W&B and Trackio by the same names, MLflow as a file.
    logged: list[Any] = []
    module = SimpleNamespace(
        Table=lambda dataframe: dataframe.to_dict("records"), log=logged.append
    )
    rows = [{"tuned": "a", "real": "b"}]
    trackers.show_texts([SimpleNamespace(_wandb=module), SimpleNamespace(_trackio=module)], 4, rows)
    assert logged == [{"samples": rows, "train/global_step": 4}] * 2


def test_they_are_not_in_a_steps_time(make_recipe, monkeypatch) -> None:
    import time

    from pressroom.nn import sampling

    make_recipe(tracking={"sample_every_steps": 1, "trackers": []})
    written = sampling.write
    monkeypatch.setattr(sampling, "write", lambda *a, **k: time.sleep(1) or written(*a, **k))
    seconds = [row["step_seconds"] for row in metrics(train("optimizer.num_steps=3"))]
    assert seconds[1] + seconds[2] < 1.5


@pytest.mark.parametrize("strategy", ["fsdp", "zero3", "zero3_offload"])
def test_a_divided_model_is_refused_with_the_reason(make_recipe, strategy: str) -> None:
    make_recipe()
    options = (f"parallel.strategy={strategy}", "tracking.sample_every_steps=5")
    with pytest.raises(UserError) as caught:
        Recipe.load("recipe.yaml", options)
    assert f"tracking.sample_every_steps: no GPU has the whole model under {strategy}" in str(
        caught.value
    )


def test_auto_chooses_among_those_that_can(make_recipe) -> None:
    make_recipe()
    gpus = Gpus(kind=kind_of("a100-80"), gpus_per_node=4)
    options = ("parallel.strategy=auto", "batch.micro_batch_size=auto")
    option, _ = choose(
        Recipe.load("recipe.yaml", ("tracking.sample_every_steps=5", *options)), SIZES["7b"], gpus
    )
    assert option.recipe.parallel.strategy in ("ddp", "zero2")


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_one_of_two_ranks_writes(make_recipe, home: Path, strategy: str) -> None:
    make_recipe()
    runs = []
    for asked in ("null", "3"):
        options = (f"parallel.strategy={strategy}", f"tracking.sample_every_steps={asked}")
        prepare(Recipe.load("recipe.yaml", options))
        found = run_ranks(strategy, watched_training, str(home), options)
        assert [rank["world_size"] for rank in found] == [2, 2]
        runs.append(RunDir(Path(found[0]["run"])))
    assert losses(runs[1]) == losses(runs[0])
    assert [row["step"] for row in samples(runs[1])] == [3, 3, 3, 6, 6, 6]
