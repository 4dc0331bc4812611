"""Checkpoints on one rank: damaged ones are passed over, the best is kept, a full disk is told."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disks import fill
from training import adapter, losses, metrics, train

from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.runs import runs_of
from train import checkpoint, saving, trainer, watchdog
from train.checkpoint import Checkpoint, Manifest


def steps(run: RunDir) -> list[int]:
    return [c.manifest.step for c in checkpoint.readable(run)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_passed_over(make_recipe, caplog) -> None:
    make_recipe()
    options = ("optimizer.num_steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=4")
    run = train(*options)
    whole, rows = losses(run), run.metrics.read_text()
    flip(run.checkpoint(8) / "optimizer.pt")
    (run.checkpoint(6) / "scheduler.pt").unlink()
    (run.checkpoint(4) / "manifest.json").unlink()
    newest = checkpoint.newest(run)
    assert newest
    assert newest.path == run.checkpoint(2)
    for step, what in ((8, "optimizer.pt"), (6, "scheduler.pt"), (4, "no manifest.json")):
        assert f"{run.checkpoint(step)}: damaged ({what}), passed over" in caplog.text
    before = run.adapter.stat().st_ino
    train(*options, run=run)
    assert losses(run) == whole
    assert len(metrics(run)) == len(rows.splitlines())
    assert steps(run) == [2, 4, 6, 8]
    assert run.adapter.stat().st_ino != before
    for step in steps(run):
        flip(run.checkpoint(step) / "rng_state.pth")
    assert checkpoint.newest(run) is None


def test_what_training_went_back_behind_is_dropped(make_recipe) -> None:
    """Else a damaged checkpoint of a later step would push out whole ones."""
    make_recipe()
    options = ("optimizer.num_steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=2")
    run = train(*options)
    assert steps(run) == [4, 6]
    flip(run.checkpoint(6) / "optimizer.pt")
    train("optimizer.num_steps=5", "checkpoint.every_steps=1", "checkpoint.keep_last=1", run=run)
    assert steps(run) == [5]


def test_the_best_is_kept_and_saved_when_it_is_found(make_recipe, monkeypatch) -> None:
    make_recipe()
    values = iter([3.0, 1.0, 2.0, 0.5])
    original = trainer.RecipeTrainer.evaluated
    monkeypatch.setattr(
        trainer.RecipeTrainer, "evaluated", lambda self, loss: original(self, next(values))
    )
    options = ("optimizer.num_steps=7", "checkpoint.every_steps=3", "checkpoint.keep_last=1")
    run = train(*options, "evaluation.every_steps=2")
    # Evaluated at 2, 4, 6 and at the end; saved at 3, 6 and at the end, and where it was lowest.
    assert steps(run) == [7]
    best = checkpoint.best(checkpoint.readable(run))
    assert best
    assert (best.manifest.step, best.manifest.eval_loss) == (7, 0.5)

    values = iter([3.0, 1.0, 2.0, 4.0])
    run = train(*options, "evaluation.every_steps=2")
    assert steps(run) == [4, 7]
    values = iter([3.0, 1.0, 2.0, 4.0])
    run = train(*options, "evaluation.every_steps=2", "checkpoint.keep_best=false")
    assert steps(run) == [7]


def written(strategy: str, world_size: int) -> Checkpoint:
    manifest = Manifest(step=1, world_size=world_size, strategy=strategy, eval_loss=None)
    return Checkpoint(Path("x/step-000001"), manifest)


def test_who_can_go_on_from_a_checkpoint(caplog) -> None:
    for strategy, ranks in (("ddp", 1), ("ddp", 4), ("fsdp", 2), ("fsdp_offload", 2), ("zero3", 2)):
        in_force = checkpoint.strategy_in_force(strategy, ranks)
        checkpoint.require_ranks(written(in_force, ranks), strategy, ranks)
    assert not caplog.text
    checkpoint.require_ranks(written("fsdp", 2), "fsdp", 8)
    assert "written by 2 ranks, and these are 8: rows and steps stay the same" in caplog.text
    with pytest.raises(UserError, match=r"these are 1: it was fsdp, and now it is ddp"):
        checkpoint.require_ranks(written("fsdp", 2), "fsdp", 1)
    with pytest.raises(UserError, match="these are 4: DeepSpeed divides a checkpoint once"):
        checkpoint.require_ranks(written("zero2", 2), "zero2", 4)


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[int], bool]) -> None:
    """Make the loss of some steps NaN."""
    original = trainer.RecipeTrainer.compute_loss

    def loss(self, *arguments, **keywords):
        found = original(self, *arguments, **keywords)
        training = keywords.get("num_items_in_batch") is not None
        return found * math.nan if training and spoilt(self.state.global_step + 1) else found

    monkeypatch.setattr(trainer.RecipeTrainer, "compute_loss", loss)


def test_a_skipped_step_changes_nothing(make_recipe, monkeypatch) -> None:
    make_recipe()
    options = ("checkpoint.every_steps=2", "optimizer.on_nan=skip", "optimizer.weight_decay=0.1")
    clean = train(*options, "optimizer.num_steps=4")
    spoil(monkeypatch, lambda step: step in (3, 4))
    run = train(*options, "optimizer.num_steps=4")
    assert [row["skipped"] for row in metrics(run) if "skipped" in row] == [1, 1]
    assert losses(run) == {step: losses(clean)[step] for step in (1, 2)}
    assert steps(run) == [2]  # none was made of step 4
    before = checkpoint.readable(run)[0].path / "adapter_model.safetensors"
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == before.read_bytes()


def test_skipping_has_an_end_and_stopping_is_the_default(make_recipe, monkeypatch) -> None:
    make_recipe()
    spoil(monkeypatch, lambda step: step > 2)
    options = ("optimizer.num_steps=40", "checkpoint.every_steps=1", "name=x")
    with pytest.raises(UserError, match="the loss of step 3 is nan"):
        train(*options)
    (stopped,) = runs_of("x")
    assert steps(stopped) == [1, 2]
    with pytest.raises(UserError, match=r"6 steps up to step 8 were skipped one after the other"):
        train(*options, "optimizer.on_nan=skip", run=stopped)
    assert steps(stopped) == [1, 2]
    assert len([row for row in metrics(stopped) if "skipped" in row]) == saving.SKIPPED_IN_A_ROW


def test_deepspeed_cannot_skip(make_recipe) -> None:
    make_recipe()
    with pytest.raises(UserError, match=r"optimizer\.on_nan: skip cannot be done under zero2"):
        Recipe.load("recipe.yaml", ["parallel.strategy=zero2", "optimizer.on_nan=skip"])


def test_a_full_disk_is_said_and_when_there_is_room_it_goes_on(
    small_disk: Path, make_recipe, monkeypatch
) -> None:
    make_recipe()
    options = ("optimizer.num_steps=4", "checkpoint.every_steps=2", "tracking.trackers=[]")
    expected = losses(train(*options))
    run = RunDir(small_disk / "tiny" / "small")
    run.begin(Recipe.load("recipe.yaml", options))
    make_room: list[Callable[[], None]] = []
    save = trainer.RecipeTrainer._save_checkpoint

    def full(self, *arguments) -> None:
        if self.state.global_step == 4:
            make_room.append(fill(small_disk, 2**16))
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.RecipeTrainer, "_save_checkpoint", full)
        with pytest.raises(UserError, match="the checkpoint of step 4 could not be") as caught:
            train(*options, run=run)
    said = str(caught.value)
    assert "No space left on device" in said or "File too large" in said
    assert "the checkpoint of step 2 is whole" in said
    assert not list(run.checkpoints.glob(".*/*"))
    make_room[0]()
    train(*options, run=run)
    assert losses(run) == expected
    assert all(bool(torch.isfinite(t).all()) for t in adapter(run).values())


def test_a_step_may_take_ten_times_the_median(monkeypatch) -> None:
    dog = watchdog.Watchdog(0)
    assert dog.limit() == watchdog.FLOOR_SECONDS
    monkeypatch.setattr(watchdog, "FLOOR_SECONDS", 1.0)
    dog._steps.extend([0.2, 0.3, 50.0])
    assert dog.limit() == pytest.approx(3.0)
    with dog.off():
        assert dog._last == math.inf
    assert dog._last < math.inf
