"""Two ranks that are killed, or asked to end, at moments drawn by lot, and go on exactly."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import invented_articles, recipe_text, write_jsonl
from faults import Event, Fault, faulty_training
from ranks import End, run_mortal_ranks, run_ranks
from training import adapter, losses, metrics

from data_prep.prepare import prepare
from pressroom.console import UserError
from pressroom.locks import lock
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import checkpoint
from train.preempt import Preemption

EVERY = 3
SEEDS = {"ddp": range(7), "fsdp": range(7, 14), "zero2": range(14, 17), "zero3": range(17, 20)}
IN_A_SAVE = range(0, 20, 3)
assert len(IN_A_SAVE) >= 5
STEPS = {strategy: EVERY * len(seeds) for strategy, seeds in SEEDS.items()}


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """One home for all runs: an undisturbed one is compared with several."""
    home = tmp_path_factory.mktemp("home")
    write_jsonl(home / "articles.jsonl", invented_articles(60))
    text = recipe_text(
        tiny_model,
        lora={"r": 4, "alpha": 8, "dropout": 0.1},
        batch={"global_batch_size": 4, "micro_batch_size": 1},
        checkpoint={"every_steps": EVERY, "keep_last": 1},
        evaluation={"every_steps": 2},
        tracking={"trackers": []},
    )
    (home / "recipe.yaml").write_text(text)
    return home


@pytest.fixture
def here(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in that home."""
    monkeypatch.setenv("PRESSROOM_HOME", str(shared_home))
    monkeypatch.chdir(shared_home)
    return shared_home


def options_of(strategy: str) -> tuple[str, ...]:
    return (f"parallel.strategy={strategy}", f"optimizer.num_steps={STEPS[strategy]}")


@cache
def undisturbed(strategy: str, home: Path) -> tuple[RunDir, list[list[Event]]]:
    """A run without a fault, and each rank's events."""
    prepare(Recipe.load("recipe.yaml", options_of(strategy)))
    found = run_ranks(strategy, faulty_training, str(home), options_of(strategy), None)
    return RunDir(Path(found[0]["run"])), [rank["events"] for rank in found]


def new_run(home: Path, name: str, strategy: str) -> RunDir:
    run = RunDir(home / "runs" / "tiny" / name)
    run.begin(Recipe.load("recipe.yaml", options_of(strategy)))
    return run


def go_on(run: RunDir, strategy: str, home: Path, fault: Fault | None) -> list[End]:
    return run_mortal_ranks(
        strategy, faulty_training, str(home), options_of(strategy), str(run.path), fault
    )


def draw(seed: int, window: int, events: list[list[Event]]) -> Fault:
    """A rank and a moment of it, in the given stretch between two checkpoints."""
    source = random.Random(seed)
    rank = source.randrange(2)
    steps = range(EVERY * window + 1, EVERY * (window + 1) + 1)
    if seed in IN_A_SAVE:
        moments = [e for e in events[rank] if e.saving and e.step == steps[-1]]
    else:
        moments = [e for e in events[rank] if not e.saving and e.step in steps]
        if window == 0:
            moments += [e for e in events[rank] if e.step == 0]
    return Fault(rank, source.choice(moments), "kill")


def same(run: RunDir, reference: RunDir, *, whole: bool = True) -> None:
    """Every figure that does not tell time is equal, bit by bit, as far as the run has come."""
    for column in ("loss", "grad_norm", "learning_rate", "tokens", "eval_loss"):
        found, expected = (
            {r["step"]: r[column] for r in metrics(x) if column in r} for x in (run, reference)
        )
        if not whole:
            expected = {step: value for step, value in expected.items() if step in found}
        assert found == expected, column
    if whole:
        first, second = adapter(run), adapter(reference)
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", SEEDS)
def test_twenty_kills_at_random_moments_change_nothing(here: Path, strategy: str) -> None:
    reference, events = undisturbed(strategy, here)
    run = new_run(here, f"killed-{strategy}", strategy)
    for window, seed in enumerate(SEEDS[strategy]):
        fault = draw(seed, window, events)
        ends = go_on(run, strategy, here, fault)
        assert ends[fault.rank].code == -9, (fault, ends)
        done = max(losses(run), default=0) if run.metrics.is_file() else 0
        newest = checkpoint.newest(run)
        assert done - (newest.manifest.step if newest else 0) <= EVERY
        if run.metrics.is_file():
            same(run, reference, whole=False)
    assert [end.code for end in go_on(run, strategy, here, None)] == [0, 0]
    same(run, reference)
    kept = [c.manifest.step for c in checkpoint.readable(run)]
    assert kept == [c.manifest.step for c in checkpoint.readable(reference)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_that_is_asked_to_end_loses_nothing(here: Path, strategy: str) -> None:
    """One rank is asked: while it loads, in a step, in an evaluation, in a save; both end well."""
    reference, events = undisturbed(strategy, here)
    run = new_run(here, f"asked-{strategy}", strategy)
    source = random.Random(strategy)
    moments = [("load", 0), ("gradient", 4), ("evaluated a batch", 8), ("torch.save", 12)]
    for what, step in moments:
        rank = 0 if what == "torch.save" and strategy == "fsdp" else source.randrange(2)
        found = [e for e in events[rank] if (e.what, e.step) == (what, step)]
        ends = go_on(run, strategy, here, Fault(rank, source.choice(found), "ask"))
        assert [end.code for end in ends] == [0, 0], ends
        # "gradient" comes before its step is finished; a save's own step is over.
        last = {"load": 0, "gradient": step + 1, "torch.save": step + 1}.get(what, step)
        assert json.loads(run.preempted.read_text()) == {"step": last}
        assert max(losses(run), default=0) == last if last else not run.metrics.exists()
        newest = checkpoint.newest(run)
        assert (newest.manifest.step if newest else 0) == last
        if what == "evaluated a batch":
            assert 8 not in [row["step"] for row in metrics(run) if "eval_loss" in row]
        assert not run.adapter.exists()
    assert [end.code for end in go_on(run, strategy, here, None)] == [0, 0]
    assert not run.preempted.exists()
    same(run, reference)


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 1), ("fsdp", 4)])
def test_another_number_of_ranks_goes_on_with_the_same_rows(
    here: Path, strategy: str, world_size: int
) -> None:
    options = (f"parallel.strategy={strategy}", "lora.dropout=0", "name=sizes")
    options += ("checkpoint.keep_last=9",)
    prepare(Recipe.load("recipe.yaml", options))
    found = run_ranks(strategy, faulty_training, str(here), options, None)
    reference = RunDir(Path(found[0]["run"]))
    run = RunDir(here / "runs" / "sizes" / strategy)
    run.begin(Recipe.load("recipe.yaml", options))
    shutil.copytree(reference.checkpoint(3), run.checkpoint(3))
    shutil.copyfile(reference.metrics, run.metrics)
    run_ranks(
        *(strategy, faulty_training, str(here), options, str(run.path)), world_size=world_size
    )
    told = (here / "rank-0.txt").read_text()
    assert f"written by 2 ranks, and these are {world_size}: rows and steps stay" in told
    assert losses(run) == pytest.approx(losses(reference), abs=1e-4)
    assert [r["tokens"] for r in metrics(run) if "tokens" in r] == [
        r["tokens"] for r in metrics(reference) if "tokens" in r
    ]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_step_that_is_no_number_on_one_rank_is_skipped_by_both(here: Path, strategy: str) -> None:
    reference, events = undisturbed(strategy, here)
    options = (*options_of(strategy), "optimizer.on_nan=skip", "name=skipped")
    (moment,) = [e for e in events[1] if (e.step, e.what, e.nth) == (5, "loss", 2)]
    prepare(Recipe.load("recipe.yaml", options))
    ends = run_mortal_ranks(
        strategy, faulty_training, str(here), options, None, Fault(1, moment, "nan")
    )
    assert [end.code for end in ends] == [0, 0], ends
    run = RunDir(Path(ends[0].value["run"]))
    rows = metrics(run)
    assert [row for row in rows if "skipped" in row] == [{"step": 6, "skipped": 1}]
    found, expected = losses(run), losses(reference)
    assert sorted(found) == [step for step in sorted(expected) if step != 6]
    assert [found[step] for step in range(1, 6)] == [expected[step] for step in range(1, 6)]
    assert all(torch.isfinite(t).all() for t in adapter(run).values())
    # The save of step 6 was due; a checkpoint is not made of a step that nobody understands.
    saves = {e.step for e in ends[0].value["events"] if e.what == "hash"}
    assert 6 not in saves
    assert 9 in saves


def test_a_step_that_hangs_ends_its_rank_and_says_where(here: Path) -> None:
    _, events = undisturbed("ddp", here)
    run = new_run(here, "hangs", "ddp")
    moment = next(e for e in events[1] if (e.step, e.what) == (4, "loss"))
    ends = go_on(run, "ddp", here, Fault(1, moment, "hang"))
    assert ends[1].code == 1
    assert ends[0].code != 0
    told = (here / "rank-1.txt").read_text()
    assert re.search(
        r"error: rank 1, step 5: nothing has moved for \d s of \d\. It stands at", told
    )
    assert "in _strike" in told
    newest = checkpoint.newest(run)
    assert newest
    assert newest.manifest.step >= 3


def orphan(marker: str) -> None:
    """A rank whose launcher dies at once."""
    from train.watchdog import Watchdog

    os.environ["TORCHELASTIC_RUN_ID"] = "x"
    if os.fork() == 0:  # the launcher
        if os.fork() == 0:  # the rank
            with Path(marker).open("w") as file:
                os.dup2(file.fileno(), 2)
            with Watchdog(3).watching():
                time.sleep(30)
            os._exit(0)
        time.sleep(0.5)
        os._exit(0)
    deadline = time.monotonic() + 20
    while "died" not in Path(marker).read_text() if Path(marker).exists() else True:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_rank_does_not_outlive_its_launcher(here: Path) -> None:
    run_ranks("ddp", orphan, str(here / "orphan.txt"), world_size=1)
    assert "rank 3, step 1: its launcher has died" in (here / "orphan.txt").read_text()


def test_a_disk_that_is_full_is_said_and_the_last_checkpoint_stays(here: Path) -> None:
    """Here no file may grow beyond 64 KiB, which a checkpoint of this model does."""
    _, events = undisturbed("ddp", here)
    run = new_run(here, "full", "ddp")
    moment = next(e for e in events[0] if (e.step, e.what, e.saving) == (6, "begin", True))
    ends = go_on(run, "ddp", here, Fault(0, moment, "full"))
    assert ends[0].code == 1
    assert "UserError: the checkpoint of step 6 could not be written to" in ends[0].value
    assert "File too large" in ends[0].value
    newest = checkpoint.newest(run)
    assert newest
    assert f"the checkpoint of step {newest.manifest.step} is whole" in ends[0].value
    assert newest.manifest.step >= 3
    assert not list(run.checkpoints.glob(".*/*"))


def test_a_second_launch_is_refused_and_a_dead_one_holds_nothing(here: Path) -> None:
    run = new_run(here, "held", "ddp")
    with lock(run.lock, "x") as let_others:
        let_others()
        ends = go_on(run, "ddp", here, None)
        assert f"another process is at it: process {os.getpid()} on" in ends[0].value
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.lock)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    holder.stdout.readline()
    with pytest.raises(UserError, match=f"process {holder.pid} on"), lock(run.lock, "x"):
        pass
    holder.kill()
    holder.wait()
    with lock(run.lock, "x"):
        pass


HOLD = """
import pathlib, sys, time
from pressroom.locks import lock
with lock(pathlib.Path(sys.argv[1]), "x"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_signal_that_comes_while_ranks_agree_is_not_lost() -> None:
    asked = Preemption()

    def agree(mine: bool) -> list[bool]:
        """The signal comes behind the question: its handler runs before the answer is there."""
        asked._hear(signal.SIGUSR2, None)
        return [mine]

    asked._any = agree  # type: ignore[assignment]
    assert not asked.agreed()
    asked._any = lambda mine: [mine]  # type: ignore[assignment]
    assert asked.agreed()
    assert asked.agreed()
