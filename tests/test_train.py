"""Training: it learns, resumes exactly, counts tokens alike, and saves only adapters."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import invented_articles
from test_house import modules_after
from training import adapter, losses, metrics, tensors, train
from transformers import modeling_utils

from generate import held_out
from pressroom.console import UserError
from pressroom.dataset import IGNORE
from pressroom.locks import lock
from pressroom.nn.loss import token_nll
from pressroom.nn.nf4 import load_base
from pressroom.recipe import AUTO_KEYS, Recipe
from pressroom.run_dir import RunDir
from train import checkpoint, model, trainer
from train.data import RankBatches, step_rows
from train.summary import COMPARED

BF16 = (
    "memory.precision=bf16",
    "quantization.compute_dtype=bfloat16",
    "quantization.storage_dtype=bfloat16",
)


def test_it_learns_and_writes_what_it_did(make_recipe, tiny_model: Path) -> None:
    make_recipe(evaluation={"every_steps": 3})
    run = train("optimizer.num_steps=12")
    rows = metrics(run)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.1
    evals = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert len(evals) == 4
    assert evals[-1] < evals[0]
    for row in steps:
        assert row["tokens_per_second_per_gpu"] > 0
        assert row["peak_memory_gib"] > 0
        assert 0 < row["tokens"] <= 4 * 128
    assert not any("token" in p.name or p.suffix == ".bin" for p in run.path.rglob("*"))
    names = sorted(p.name for p in run.adapter.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("precision", [(), BF16], ids=["fp32", "bf16"])
def test_adapters_are_fp32_and_load_in_plain_peft(
    make_recipe, tiny_model: Path, precision: tuple[str, ...]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    make_recipe()
    run = train("optimizer.num_steps=2", *precision)
    saved = adapter(run)
    assert {t.dtype for t in saved.values()} == {torch.float32}
    assert len(saved) == 2 * 7 * 2
    assert all(bool(t.any()) for t in saved.values())
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, run.adapter)
    own = {n: p for n, p in loaded.named_parameters() if "lora_" in n}
    assert len(own) == len(saved)


def test_a_checkpoint_holds_adapters_and_state_only(make_recipe) -> None:
    make_recipe()
    run = train("optimizer.num_steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=2")
    assert sorted(p.name for p in run.checkpoints.glob("step-*")) == ["step-000004", "step-000006"]
    assert run.checkpoints.stat().st_mode & 0o777 == 0o700
    newest = checkpoint.newest(run)
    assert newest is not None
    assert newest.path == run.checkpoint(6)
    assert newest.manifest == checkpoint.Manifest(
        step=6, world_size=1, strategy="ddp", eval_loss=None
    )
    names = {p.name for p in newest.path.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert "training_args.bin" not in names
    assert sum(t.numel() for t in tensors(newest.path).values()) == sum(
        t.numel() for t in adapter(run).values()
    )


@pytest.mark.parametrize("precision", [(), BF16], ids=["fp32", "bf16"])
def test_resume_equals_an_undisturbed_run_bit_by_bit(
    make_recipe, home: Path, precision: tuple[str, ...]
) -> None:
    make_recipe(lora={"r": 4, "alpha": 8, "dropout": 0.1})
    options = ("optimizer.num_steps=8", "checkpoint.every_steps=4", *precision)
    undisturbed = train(*options)
    killed = RunDir(home / "runs" / "tiny" / "killed")
    killed.path.mkdir(parents=True)
    killed.write_recipe(Recipe.load("recipe.yaml", options))
    shutil.copytree(undisturbed.checkpoint(4), killed.checkpoint(4))
    shutil.copyfile(undisturbed.metrics, killed.metrics)  # step 5 and 6 were done, then killed
    train(*options, run=killed)
    assert losses(killed) == losses(undisturbed)
    assert len(metrics(killed)) == 8
    first, second = adapter(undisturbed), adapter(killed)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("precision", [(), BF16], ids=["fp32", "bf16"])
def test_evaluating_changes_no_later_loss(make_recipe, precision: tuple[str, ...]) -> None:
    make_recipe()
    without = losses(train(*precision))
    with_evaluation = losses(train("evaluation.every_steps=2", *precision))
    assert with_evaluation == without


def test_micro_batches_of_any_size_give_the_same_step(make_recipe) -> None:
    make_recipe()
    runs = [
        metrics(train("optimizer.num_steps=3", f"batch.micro_batch_size={size}"))
        for size in (1, 2, 4)
    ]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-5)
            assert a["tokens"] == b["tokens"]


def test_activation_checkpointing_changes_nothing(make_recipe, monkeypatch) -> None:
    make_recipe()
    calls = []
    original = modeling_utils.checkpoint

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "checkpoint", counted)
    plain = losses(train())
    assert not calls
    checkpointed = losses(train("memory.activation_checkpointing=full"))
    assert len(calls) == 6 * 2 * 2  # steps, micro-steps, layers
    assert checkpointed == pytest.approx(plain, abs=1e-6)


def test_auto_is_filled_in_and_every_run_tests_the_planner(make_recipe, caplog) -> None:
    make_recipe()
    caplog.set_level(logging.INFO, logger="pressroom")
    run = train(*(f"{key}=auto" for key in AUTO_KEYS), "checkpoint.every_steps=3")
    resolved = Recipe.load(str(run.recipe))
    assert resolved.autos == ()
    assert resolved.parallel.strategy == "ddp"
    told = [line for line in caplog.messages if line.startswith("auto: ")]
    assert [line.split(":")[1].split("=")[0].strip() for line in told] == list(AUTO_KEYS)
    summary = json.loads(run.summary.read_text())
    steps = [row["step_seconds"] for row in metrics(run) if "loss" in row]
    assert min(steps) <= summary["measured"]["step_seconds"] <= max(steps)
    assert summary["predicted"]["micro_batch_size"] == resolved.batch.micro_batch_size
    for name in COMPARED:
        assert summary["measured"][name] > 0
        assert summary["predicted"][name] > 0
    assert any("predicted and measured" in line for line in caplog.messages)


def test_lora_without_quantization(make_recipe) -> None:
    make_recipe()
    found = losses(train("quantization=null", "optimizer.num_steps=8"))
    assert found[8] < found[1]


def test_a_loss_that_is_not_a_number_stops_the_run(make_recipe) -> None:
    make_recipe()
    with pytest.raises(UserError, match=r"the loss of step \d is nan"):
        train("optimizer.learning_rate=1e30", "optimizer.max_grad_norm=0")


def test_a_gradient_that_is_not_a_number_stops_the_run(make_recipe, monkeypatch) -> None:
    make_recipe()
    infinite = torch.tensor(float("inf"))
    monkeypatch.setattr(trainer.RecipeTrainer, "_clip_grad_norm", lambda self, model: infinite)
    with pytest.raises(UserError, match="the grad_norm of step 1 is inf"):
        train()
    assert not list(Path("runs").glob("*/*/adapter"))


def test_two_processes_do_not_train_one_run(make_recipe, home: Path) -> None:
    recipe = make_recipe()
    run = RunDir.create(recipe)
    with lock(run.lock, "run"), pytest.raises(UserError, match="another process is at it"):
        train(run=run)
    train(run=run)


def test_a_line_cut_by_a_kill_is_dropped(make_recipe) -> None:
    make_recipe()
    run = train("optimizer.num_steps=4", "checkpoint.every_steps=2")
    complete = run.metrics.read_text()
    run.metrics.write_text(complete[:-30])
    shutil.rmtree(run.checkpoint(4))
    train("optimizer.num_steps=4", "checkpoint.every_steps=2", run=run)
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4]


def test_going_on_from_the_last_step_only_publishes(make_recipe) -> None:
    make_recipe()
    run = train("optimizer.num_steps=4", "checkpoint.every_steps=4")
    before = adapter(run)
    shutil.rmtree(run.adapter)
    train("optimizer.num_steps=4", "checkpoint.every_steps=4", run=run)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter(run).items())
    assert len(metrics(run)) == 4


def test_held_out_loss_is_the_mean_over_trained_tokens(make_recipe, tiny_model: Path) -> None:
    make_recipe(
        articles=invented_articles(200), batch={"global_batch_size": 3, "micro_batch_size": 3}
    )
    options = ("optimizer.num_steps=1", "evaluation.every_steps=1", "optimizer.learning_rate=1e-9")
    run = train(*options)
    base = load_base(tiny_model, run.load_recipe().quantization, "fp32", torch.device("cpu"))
    total = count = 0.0
    for _, ids, labels in held_out.batches(held_out.tokens(run.dataset), 4, torch.device("cpu")):
        total += float(token_nll(base, ids, labels).sum())
        count += int((labels[:, 1:] != IGNORE).sum())
    (found,) = [row["eval_loss"] for row in metrics(run) if "eval_loss" in row]
    assert found == pytest.approx(total / count, abs=1e-5)


def test_a_dataset_is_found_or_the_difference_is_told(make_recipe) -> None:
    from train.sft import fine_tune

    make_recipe()
    train("optimizer.num_steps=1")
    recipe = Recipe.load("recipe.yaml", ["sequence_length=64"])
    with pytest.raises(UserError) as caught:
        fine_tune(recipe, None, None)
    assert "no such dataset; make it with `pressroom prep`" in str(caught.value)
    assert "sequence_length: the dataset has 128, the recipe 64" in str(caught.value)


def test_the_translation_of_a_recipe(make_recipe, home: Path) -> None:
    recipe = make_recipe(
        optimizer={
            "name": "adamw_torch",
            "learning_rate": 2e-4,
            "schedule": "constant",
            "warmup_ratio": 0.1,
            "weight_decay": 0.001,
            "max_grad_norm": 0.5,
            "num_epochs": 2,
        },
        lora={"r": 8, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj"]},
    )
    arguments = trainer.training_arguments(recipe, RunDir(home / "run"), 1, 21)
    assert arguments.max_steps == 11
    assert str(arguments.lr_scheduler_type.value) == "constant_with_warmup"
    assert (arguments.bf16, arguments.fp16, arguments.activation_checkpointing) == (0, 0, 0)
    assert (arguments.max_grad_norm, arguments.weight_decay) == (0.5, 0.001)
    assert arguments.hub_token is None
    lora = model.lora_config(recipe.lora)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 4, 0.1)
    assert lora.target_modules == {"q_proj"}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_rows_of_a_step_do_not_depend_on_the_ranks(make_recipe, world_size: int) -> None:
    recipe = make_recipe(
        batch={"global_batch_size": 8, "micro_batch_size": 2}, optimizer={"num_epochs": 3}
    )
    ranks = [
        list(RankBatches(recipe, 21, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    accumulation = 8 // (2 * world_size)
    steps = [
        [row for m in range(accumulation) for rank in ranks for row in rank[s * accumulation + m]]
        for s in range(recipe.num_steps(21))
    ]
    assert len(steps) == 8  # 63 rows, the eighth step goes one into a fourth pass
    assert steps == [step_rows(s, num_rows=21, global_batch_size=8, seed=17) for s in range(8)]
    seen = [row for step in steps for row in step]
    for start in (0, 21, 42):
        assert sorted(seen[start : start + 21]) == list(range(21))


def test_a_rank_does_not_import_the_compiler() -> None:
    """As bitsandbytes would, which peft imports; and what compiles does so as ever."""
    found = modules_after(
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('train.sft', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "import torch; assert torch.compile.__module__ == 'torch'"
    )
    assert {"bitsandbytes", "peft", "trl"} <= found
    assert "torch._inductor.compile_fx" not in found
