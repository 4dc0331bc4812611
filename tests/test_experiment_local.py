"""Experiments on this machine: one after the other, taken up where they were broken off."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import experiments
import pytest

from launch.command import Node
from launch.experiments import engine, giving_up
from launch.experiments.commands import scale, size, sweep
from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.experiment import Experiment, find_experiment
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

SCALE = ("--points", "1,2", "--repeats", "2", "--steps", "4", "--warmup-steps", "1")


class Trainer:
    """The stand-in, and which points it was started for."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "trainer.py"
        self.script.write_text(experiments.TRAINER)
        self.started: list[str] = []
        self.dies_at: str | None = None
        self.fails_at: str | None = None

    def command(self, recipe: Recipe, run: RunDir, dataset: Path, node: Node) -> list[str]:
        """In the place of `train_command`."""
        name = run.path.name
        if name == self.dies_at:
            raise KeyboardInterrupt
        self.started.append(name)
        if name == self.fails_at:
            return [sys.executable, "-c", "raise SystemExit(3)"]
        arguments = [str(run.recipe), "--run", str(run.path), "--dataset", str(dataset)]
        launcher = f'WORLD_SIZE={node.world_size} "$@"; exit $?'  # a process above the rank's
        return ["bash", "-c", launcher, "-", sys.executable, str(self.script), *arguments]


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})


@pytest.fixture
def trainer(
    home: Path, make_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Trainer:
    make_recipe()
    made = Trainer(home)
    monkeypatch.setattr(engine, "train_command", made.command)
    return made


@pytest.fixture
def carry_out(output_of: Callable[..., tuple[str, int]]) -> Callable[..., str]:
    def run(command: Any, *arguments: str) -> str:
        return output_of(command, "recipe.yaml", *arguments)[0]

    return run


def found(name: str) -> Experiment:
    experiment = find_experiment(name)
    assert experiment
    return experiment


def values(experiment: Experiment) -> Any:
    return json.loads(experiment.results.read_text())


def test_a_broken_off_experiment_is_taken_up_and_only_what_is_missing_runs(
    trainer: Trainer, carry_out: Callable[..., str], home: Path
) -> None:
    trainer.dies_at = "1-ranks-repeat-2"
    with pytest.raises(click.Abort):
        carry_out(scale, *SCALE)
    assert trainer.started == ["1-ranks-repeat-1", "2-ranks-repeat-1"]
    trainer.dies_at, trainer.started = None, []
    said = carry_out(scale, *SCALE)
    assert trainer.started == ["1-ranks-repeat-2", "2-ranks-repeat-2"]
    assert len(list((home / "experiments" / "tiny-scale").iterdir())) == 1
    assert "All 4 finished points trained on the same rows" in said
    trainer.started = []
    assert carry_out(scale, *SCALE) == said
    assert trainer.started == []
    carry_out(scale, *SCALE, "--fresh")
    assert len(trainer.started) == 4
    assert len(list((home / "experiments" / "tiny-scale").iterdir())) == 2


def test_a_point_that_fails_stops_no_other_ends_with_an_error_and_is_tried_again(
    trainer: Trainer, carry_out: Callable[..., str]
) -> None:
    trainer.fails_at = "1-ranks-repeat-1"
    with pytest.raises(UserError, match="1-ranks-repeat-1: failed"):
        carry_out(scale, *SCALE)
    assert len(trainer.started) == 4
    states = [point["state"] for point in values(found("tiny-scale"))["points"]]
    assert states == ["failed", *["finished"] * 3]
    trainer.fails_at, trainer.started = None, []
    carry_out(scale, *SCALE)
    assert trainer.started == ["1-ranks-repeat-1"]


def test_a_damaged_point_is_made_again_and_new_articles_are_another_question(
    trainer: Trainer, carry_out: Callable[..., str], home: Path
) -> None:
    once = ("--points", "1,2", "--repeats", "1", "--steps", "4", "--warmup-steps", "1")
    carry_out(scale, *once)
    trainer.started = []
    adapter = found("tiny-scale").path / "2-ranks-repeat-1" / "adapter"
    (adapter / "adapter_model.safetensors").unlink()
    carry_out(scale, *once)
    assert trainer.started == ["2-ranks-repeat-1"]
    trainer.started = []
    lines = (home / "articles.jsonl").read_text().splitlines(keepends=True)
    (home / "articles.jsonl").write_text("".join(lines[:-1]))
    carry_out(scale, *once)
    assert len(trainer.started) == 2


def test_a_hopeless_point_is_ended_and_stays_so(
    trainer: Trainer, carry_out: Callable[..., str]
) -> None:
    arguments = (
        *("optimizer.learning_rate=1e-3,2e-3,3e-3,1e-2", "lora.r=8"),
        *("evaluation.every_steps=2", "optimizer.num_steps=8"),
    )
    said = carry_out(sweep, *arguments)
    experiment = found("tiny-sweep")
    states = {p["point"]: p["state"] for p in values(experiment)["points"]}
    assert list(states.values()) == ["finished"] * 3 + ["given up"]
    assert "above the median" in said
    best = Recipe.load(str(experiment.best))
    assert best.optimizer.learning_rate == 2e-3
    trainer.started = []
    carry_out(sweep, *arguments)
    assert trainer.started == []
    carry_out(sweep, *arguments, "--keep-all", "--dry-run")
    run = experiment.run(experiment.definition().points[3])
    assert giving_up.judge(run)()
    kept = experiment.definition().settings | {"gives_up": False}
    plain = json.loads((experiment.path / "experiment.json").read_text()) | {"settings": kept}
    (experiment.path / "experiment.json").write_text(json.dumps(plain))
    assert not giving_up.judge(run)()


def test_fractions_of_the_data_are_parts_of_each_other_and_hold_out_the_same(
    trainer: Trainer, carry_out: Callable[..., str]
) -> None:
    carry_out(size, "--data", "0.1,0.5", "evaluation.every_steps=2")
    experiment = found("tiny-size")
    used, held = [], []
    for point in experiment.definition().points:
        dataset = experiment.run(point).dataset
        counts = Manifest.read(dataset).counts
        rejected = {
            json.loads(line)["id"] for line in (dataset / "rejects.jsonl").read_text().splitlines()
        }
        held.append((dataset / "held_out.jsonl").read_text())
        used.append((counts["train"], rejected))
    assert held[0] == held[1]
    assert 0 < used[0][0] < used[1][0] < 55
    assert used[0][1] > used[1][1] > set()
    assert [row["data.fraction"] for row in values(experiment)["rows"][:2]] == [0.1, 0.5]


def test_two_ranks_on_the_cpu_train_what_one_does(
    home: Path, make_recipe: Callable[..., Any], carry_out: Callable[..., str]
) -> None:
    make_recipe()
    said = carry_out(scale, "--points", "1,2", "--repeats", "1", "--steps", "3", *SCALE[-2:])
    assert "All 2 finished points trained on the same rows in the same order, 4 a step" in said
    experiment = found("tiny-scale")
    facts = [experiment.run(point).facts for point in experiment.definition().points]
    assert [each["world_size"] for each in facts] == [1, 2]
    assert [row["ranks"] for row in values(experiment)["rows"]] == [1, 2]
    assert os.environ["OMP_NUM_THREADS"] == "1"
