"""A recipe's `speed` in a whole training: the losses of plain layers, on one rank and on two."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from test_train import BF16
from training import adapter, losses, train
from watch import watched_training

from data_prep.prepare import prepare
from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train.activations import _is_kept

FUSED = "speed: attention by blocks, save all; 2 of 2 decoder layers are fused"


def told(caplog: pytest.LogCaptureFixture) -> str:
    """The line about speed; there is one."""
    (line,) = [message for message in caplog.messages if message.startswith("speed: ")]
    caplog.clear()
    return line


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="pressroom")
    return caplog


@pytest.mark.parametrize("save", ["auto", "least"])
def test_a_training_loses_what_plain_layers_lose(make_recipe, caplog, save: str) -> None:
    make_recipe(evaluation={"every_steps": 3})
    options = ("optimizer.num_steps=12", "optimizer.learning_rate=3e-3")
    plain = losses(train(*options, "speed=off"))
    assert told(caplog) == "speed: attention by dense; all layers plain, as asked"
    found = losses(train(*options, f"speed.save={save}"))
    assert told(caplog).startswith(FUSED if save == "auto" else FUSED.replace("all", save))
    assert found == pytest.approx(plain, abs=1e-4)
    assert found[1] == pytest.approx(plain[1], abs=1e-6)
    assert plain[12] < plain[1] - 0.1


@pytest.mark.parametrize("precision", [(), BF16], ids=["fp32", "bf16"])
def test_a_resume_of_lean_layers_is_exact(
    make_recipe, home: Path, caplog, precision: tuple[str, ...]
) -> None:
    make_recipe()
    options = ("optimizer.num_steps=8", "checkpoint.every_steps=4", *precision)
    undisturbed = train(*options)
    assert FUSED in told(caplog)
    killed = RunDir(home / "runs" / "tiny" / "killed")
    killed.path.mkdir(parents=True)
    killed.write_recipe(Recipe.load("recipe.yaml", options))
    shutil.copytree(undisturbed.checkpoint(4), killed.checkpoint(4))
    shutil.copyfile(undisturbed.metrics, killed.metrics)
    train(*options, run=killed)
    assert losses(killed) == losses(undisturbed)
    first, second = adapter(undisturbed), adapter(killed)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("lora.dropout=0.1", "2 stay plain: dropout"),
        ("lora.target_modules=[q_proj]", "2 stay plain: a linear layer without adapter"),
        ("memory.activation_checkpointing=selective", "2 stay plain: selective checkpointing"),
    ],
)
def test_what_cannot_be_lean_says_so_once(make_recipe, caplog, override: str, reason: str) -> None:
    make_recipe()
    train("optimizer.num_steps=1", override)
    assert reason in told(caplog)


def test_an_attention_that_is_not_here_ends_the_run(make_recipe) -> None:
    make_recipe()
    with pytest.raises(UserError, match=r"speed.attention: varlen: it needs a GPU; here there is"):
        train("speed.attention=varlen")


def test_a_word_for_speed_is_one_of_two(make_recipe) -> None:
    make_recipe()
    assert Recipe.load("recipe.yaml", ["speed=auto"]).speed == Recipe.load("recipe.yaml").speed
    off = Recipe.load("recipe.yaml", ["speed=off"]).speed
    assert (off.attention, off.save, off.cache) == ("dense", "plain", "none")
    with pytest.raises(UserError, match='speed: must be auto, off or a section, not "fast"'):
        Recipe.load("recipe.yaml", ["speed=fast"])
    with pytest.raises(UserError, match=r"speed.attention: 'blox' is not one .* mean blocks\?"):
        Recipe.load("recipe.yaml", ["speed.attention=blox"])


def test_selective_checkpointing_keeps_varlen_attention() -> None:
    pytest.importorskip("torch.nn.attention.varlen")
    assert _is_kept(4, None, torch.ops.torch_attn._varlen_attn.default)


def plain_and_lean(home: str, options: tuple[str, ...]) -> list[tuple[str, dict[int, float]]]:
    """A rank's two trainings, and what its first rank says of speed; one rendezvous serves both."""
    from accelerate.state import AcceleratorState, GradientState

    from pressroom.console import log

    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log.setLevel(logging.INFO)
    log.addHandler(Keep())
    found = []
    for speed in ("speed=off", "speed.cache=all"):
        for state in (AcceleratorState, GradientState):
            state._reset_state()
        lines.clear()
        run = watched_training(home, (*options, speed))["run"]
        said = " ".join(line for line in lines if line.startswith("speed: "))
        found.append((said, losses(RunDir(Path(run)))))
    return found


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [("ddp", ()), ("fsdp", ()), ("zero2", BF16), ("zero3", ())],
    ids=["ddp-fp32", "fsdp-fp32", "zero2-bf16", "zero3-fp32"],
)
def test_two_ranks_lose_alike_plain_and_lean(
    make_recipe, home: Path, strategy: str, precision: tuple[str, ...]
) -> None:
    """Or it is refused, with the reason, and trains plain."""
    make_recipe()
    options = (
        f"parallel.strategy={strategy}",
        "optimizer.num_steps=6",
        "optimizer.learning_rate=3e-3",
        *precision,
    )
    prepare(Recipe.load("recipe.yaml", options))
    ranks = run_ranks(strategy, plain_and_lean, str(home), options)
    (_, plain), (said, lean) = ranks[0]
    within = 1e-3 if precision else 1e-5
    assert lean == pytest.approx(plain, abs=within)
    assert plain[6] < plain[1] - 0.02
    assert [text for text, _ in ranks[1]] == ["", ""]
    if strategy == "zero3":
        assert "2 stay plain: ZeRO-3 gathers weights module by module" in said
    else:
        assert FUSED in said
        assert ("dequantized once" in said) == (strategy != "fsdp")
