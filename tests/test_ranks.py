"""Two ranks of every strategy: sharded as asked, the same losses as one, exact resume."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invented_articles
from ranks import run_ranks
from safetensors.torch import load_file
from test_train import BF16
from training import adapter, losses, metrics, train
from watch import watched_training

from data_prep.prepare import prepare
from pressroom.geometry import Geometry
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

EXPECTED = {"ddp": "MULTI_CPU", "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
KINDS = {
    "qlora-fp32": (),
    "qlora-bf16": BF16,
    "lora-bf16": ("quantization=null", "memory.precision=bf16"),
    "recomputed-bf16": ("memory.activation_checkpointing=full", *BF16),
    "selective-bf16": ("memory.activation_checkpointing=selective", *BF16),
}


def train_on(
    ranks: int, strategy: str, home: Path, *overrides: str, run: RunDir | None = None
) -> list[dict[str, Any]]:
    """Train on several ranks, see that they were so many of that strategy; what each reports."""
    options = (f"parallel.strategy={strategy}", *overrides)
    prepare(Recipe.load("recipe.yaml", options))
    path = str(run.path) if run else None
    found = run_ranks(strategy, watched_training, str(home), options, path, world_size=ranks)
    for rank in found:
        assert (rank["distributed_type"], rank["world_size"]) == (EXPECTED[strategy], ranks)
    assert len({rank["run"] for rank in found}) == 1
    return found


def run_of(found: list[dict[str, Any]]) -> RunDir:
    """The run that ranks have trained."""
    return RunDir(Path(found[0]["run"]))


@cache
def _alone(options: tuple[str, ...], home: Path) -> RunDir:
    return train(*options)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all comparisons with the same single runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def in_shared_home(shared_home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work there, on a recipe whose last held-out round leaves a rank without a row."""
    from conftest import recipe_text, write_jsonl

    monkeypatch.setenv("PRESSROOM_HOME", str(shared_home))
    monkeypatch.chdir(shared_home)
    write_jsonl(shared_home / "articles.jsonl", invented_articles(160))
    text = recipe_text(tiny_model, evaluation={"every_steps": 10})
    (shared_home / "recipe.yaml").write_text(text)
    return shared_home


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", EXPECTED)
def test_two_ranks_lose_as_one(
    in_shared_home: Path, tiny_model: Path, strategy: str, kind: str
) -> None:
    options = (
        "optimizer.num_steps=20",
        "optimizer.learning_rate=3e-3",
        "checkpoint.every_steps=20",
        *KINDS[kind],
        # Lean layers are refused there: strategies are compared on the same layers.
        *(["speed.save=plain"] if strategy == "zero3" else []),
    )
    alone = _alone(options, in_shared_home)
    ranks = train_on(2, strategy, in_shared_home, *options)
    together = run_of(ranks)
    # ZeRO-3's hooks add up the gradients of parallel layers in another order, which bf16 rounds
    # otherwise: forward passes are equal to the bit until the first such gradient is applied.
    within = 5e-4 if strategy == "zero3" and kind.endswith("bf16") else 1e-4
    assert len(losses(together)) == 20
    assert [losses(together)[i] for i in (1, 2)] == pytest.approx(
        [losses(alone)[i] for i in (1, 2)], abs=1e-6
    )
    assert losses(together)[20] < losses(together)[1] - 0.1
    for column in ("loss", "eval_loss", "learning_rate", "tokens"):
        pair = [[r[column] for r in metrics(run) if column in r] for run in (together, alone)]
        assert len(pair[0]) >= 2
        assert pair[0] == pytest.approx(pair[1], abs=within), column
    norms = [[r["grad_norm"] for r in metrics(run) if "loss" in r] for run in (together, alone)]
    assert norms[0] == pytest.approx(norms[1], abs=10 * within)
    assert {t.dtype for t in adapter(together).values()} == {torch.float32}
    for rank in ranks:
        _numerics_are_those_of_the_table(rank, strategy, kind, Geometry.of(tiny_model))
    # Adapters and two moments, what a strategy keeps besides; never the base or its scales.
    adapters = Geometry.of(tiny_model).num_lora_weights(4) * 4
    copies = tensor_bytes(together.checkpoint(20)) / adapters
    assert copies == pytest.approx(
        {"ddp": 3, "fsdp": 4, "zero2": 5, "zero3": 4}[strategy], abs=0.05
    )


def _numerics_are_those_of_the_table(
    rank: dict[str, Any], strategy: str, kind: str, geometry: Geometry
) -> None:
    """`docs/design.md`, Numerics: what each computes, keeps and sends."""
    compute = "float32" if kind == "qlora-fp32" else "bfloat16"
    assert rank["dtypes"] == {
        "base": compute,
        "compute": compute,
        "adapter outputs": compute,
        "loss": "float32",
        "adapters": "float32",
        "gradients": "float32" if strategy in ("ddp", "fsdp") else "",  # ZeRO has taken them
        "reduction": "float32",
    }
    divided = 2 if strategy in ("fsdp", "zero3") else 1
    codes = geometry.num_linear_weights // 2
    assert rank["code_bytes"] == (0 if kind == "lora-bf16" else codes / divided)
    assert rank["bucket"] == (geometry.num_lora_weights(4) if "zero" in strategy else None)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_and_accumulation_trade_places(make_recipe, home: Path, strategy: str) -> None:
    """1 x 4, 2 x 2, 4 x 1: the same losses and adapter gradients, on unequal rows.

    The held-out rows do not divide over the ranks: some have nothing left in the last round.
    """
    make_recipe(
        batch={"global_batch_size": 4, "micro_batch_size": 1},
        prompt={"format": "llama2-chat"},  # the answer alone is trained
        optimizer={"learning_rate": 1e-3, "num_steps": 3, "max_grad_norm": 0},
        evaluation={"every_steps": 3},
        articles=invented_articles(130),
    )
    from train.data import load_rows

    folder = prepare(Recipe.load("recipe.yaml"))
    assert len(load_rows(folder, "held_out")) % 4 in (1, 2)
    rows = load_rows(folder, "train")
    trained = [sum(label >= 0 for label in row["labels"]) for row in rows]
    assert max(trained) > 1.5 * min(trained)
    reference = run_ranks("ddp", watched_training, str(home), (), world_size=1)
    assert reference[0]["world_size"] == 1
    expected = losses(run_of(reference))
    (held_out,) = [r["eval_loss"] for r in metrics(run_of(reference)) if "eval_loss" in r]
    for ranks in (2, 4):
        found = train_on(ranks, strategy, home)
        assert losses(run_of(found)) == pytest.approx(expected, abs=1e-5)
        evaluated = [r["eval_loss"] for r in metrics(run_of(found)) if "eval_loss" in r]
        assert evaluated == pytest.approx([held_out], abs=1e-5)
        for rank in found:
            for step, gradients in enumerate(reference[0]["gradients"]):
                assert rank["gradients"][step].keys() == gradients.keys()
                for name, gradient in gradients.items():
                    difference = abs(rank["gradients"][step][name] - gradient).max()
                    assert difference < 1e-5, name
    assert max(abs(g).max() for g in reference[0]["gradients"][2].values()) > 1e-3


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in a checkpoint, but for the states of random numbers."""
    total = 0
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        elif path.suffix in (".pt", ".bin"):
            held = torch.load(path, weights_only=False)
        else:
            continue
        total += sum(t.numel() * t.element_size() for t in _tensors(held))
    return total


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def test_ranks_that_were_started_for_another_strategy_stop(make_recipe, home: Path) -> None:
    """Else a recipe that says fsdp would hold the whole base on every GPU, and nobody knew."""
    make_recipe()
    for started, asked in (("ddp", "fsdp"), ("zero2", "zero3_offload")):
        options = (f"parallel.strategy={asked}",)
        prepare(Recipe.load("recipe.yaml", options))
        message = f"parallel.strategy: {asked}, but these 2 ranks were started for {started}: "
        with pytest.raises(AssertionError, match=message):
            run_ranks(started, watched_training, str(home), options)
        assert not list((home / "runs").glob("*/*/adapter"))


@pytest.mark.parametrize("strategy", EXPECTED)
def test_two_ranks_resume_exactly(make_recipe, home: Path, strategy: str) -> None:
    make_recipe(lora={"r": 4, "alpha": 8, "dropout": 0.1})
    options = ("optimizer.num_steps=6", "checkpoint.every_steps=3", *BF16)
    undisturbed = run_of(train_on(2, strategy, home, *options))
    killed = RunDir(home / "runs" / "tiny" / "killed")
    killed.path.mkdir(parents=True)
    killed.write_recipe(Recipe.load("recipe.yaml", options))
    shutil.copytree(undisturbed.checkpoint(3), killed.checkpoint(3))
    shutil.copyfile(undisturbed.metrics, killed.metrics)
    train_on(2, strategy, home, *options, run=killed)
    assert losses(killed) == losses(undisturbed)
    if strategy.startswith("zero"):
        shutil.rmtree(killed.checkpoint(6))
        with pytest.raises(AssertionError, match="written by 2 ranks, and these are 1: DeepSpeed"):
            run_ranks(
                strategy,
                watched_training,
                str(home),
                (f"parallel.strategy={strategy}", *options),
                str(killed.path),
                world_size=1,
            )
    first, second = adapter(undisturbed), adapter(killed)
    assert all(torch.equal(first[name], second[name]) for name in first)
