"""Loading under FSDP, layer by layer: the same model as undivided, in half the memory."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recipe_text
from ranks import run_ranks
from storages import Storages

from data_prep.prepare import prepare
from pressroom.geometry import Geometry
from pressroom.planner.weights import weights
from pressroom.quantized_base import Codes
from pressroom.recipe import Recipe
from train import quantize

BF16 = (
    "memory.precision=bf16",
    "quantization.compute_dtype=bfloat16",
    "quantization.storage_dtype=bfloat16",
)
SLICE = 2**11
"""Weights quantized at a time, less than the smallest layer here has."""


@pytest.fixture
def eight_layers(home: Path, tokenizer_folder: Path) -> Path:
    """A home with a recipe of a model whose layers are small beside all of it."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(home / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, home / "model" / name)
    (home / "recipe.yaml").write_text(recipe_text(home / "model"))
    return home


def loaded(home: str, options: tuple[str, ...], streamed: bool) -> dict[str, Any]:
    """Load a recipe's model on a rank as training does, and divide it.

    Returns:
        The most bytes of tensors at once while it was loaded, and every tensor, whole.
    """
    os.chdir(home)
    os.environ["PRESSROOM_HOME"] = home
    from accelerate import Accelerator, PartialState
    from torch.distributed.tensor import DTensor

    from pressroom.nn import pieces
    from train import model as builder
    from train import sharded_load

    pieces.SLICE = SLICE
    if not streamed:
        os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
        os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "LlamaDecoderLayer"
        sharded_load.applies = lambda recipe: False
    ranks = PartialState(cpu=True)
    recipe = Recipe.load("recipe.yaml", ("parallel.strategy=fsdp", *options))
    with Storages() as counted:
        model = builder.build(recipe, Path(home) / "model", ranks.device)
    model.is_loaded_in_4bit = False
    if recipe.quantization and not streamed:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()  # as TRL does
    builder.adapters_to_fp32(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    model, _ = Accelerator(cpu=True).prepare(model, optimizer)
    tensors = {}
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert isinstance(tensor, DTensor) or "inv_freq" in name, name
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        tensors[name] = whole.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return {"peak": counted.peak, "tensors": tensors}


KINDS = {"qlora-bf16": BF16, "qlora-fp32": (), "lora-fp32": ("quantization=null",)}


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_base_and_a_layer_is_all_a_rank_holds(eight_layers: Path, kind: str) -> None:
    recipe = Recipe.load("recipe.yaml", KINDS[kind])
    geometry = Geometry.of(eight_layers / "model")
    total = weights(geometry, recipe.quantization, recipe.lora, recipe.memory)
    layers = total.codes + total.linears + total.adapters
    # Scales are no parameters; accelerate divides embeddings and head, later.
    undivided = total.scales + total.other
    most = layers / 2 + 1.1 * layers / geometry.num_layers + undivided + 32 * SLICE
    assert most < 0.85 * (layers + undivided)
    streamed = run_ranks("fsdp", loaded, str(eight_layers), KINDS[kind], True)
    stock = run_ranks("fsdp", loaded, str(eight_layers), KINDS[kind], False)
    for mine, theirs in zip(streamed, stock, strict=True):
        assert layers / 2 + total.other < mine["peak"] < most
        if recipe.quantization:  # else transformers reads in threads, where nothing is counted
            assert theirs["peak"] > layers + total.other
        assert mine["tensors"].keys() == theirs["tensors"].keys()
        for name, tensor in mine["tensors"].items():
            assert (tensor == theirs["tensors"][name]).all(), name


@pytest.mark.parametrize("kind", ["qlora-bf16", "qlora-fp32"])
def test_codes_that_were_made_before_are_the_same(eight_layers: Path, kind: str) -> None:
    """Also with tied embeddings."""
    config = eight_layers / "model" / "config.json"
    config.write_text(config.read_text().replace('_embeddings": false', '_embeddings": true'))
    recipe = Recipe.load("recipe.yaml", KINDS[kind])
    assert recipe.quantization is not None
    on_load = run_ranks("fsdp", loaded, str(eight_layers), KINDS[kind], True)
    codes = Codes(eight_layers / "model", recipe.quantization, recipe.memory.precision)
    place = quantize.make(codes)
    before = run_ranks("fsdp", loaded, str(eight_layers), KINDS[kind], True)
    stock = run_ranks("fsdp", loaded, str(eight_layers), KINDS[kind], False)
    for found in (before, stock):
        for rank, expected in zip(found, on_load, strict=True):
            assert rank["tensors"].keys() == expected["tensors"].keys()
            for name, tensor in rank["tensors"].items():
                assert (tensor == expected["tensors"][name]).all(), name
    # They are what is read: without them nothing else is.
    next(place.glob("model-00002-*")).unlink()
    with pytest.raises(AssertionError, match="run `pressroom quantize` again"):
        run_ranks("fsdp", loaded, str(eight_layers), KINDS[kind], True)


def trained_with_whole_codes(home: str, options: tuple[str, ...]) -> None:
    """Train under FSDP that leaves the base's codes out."""
    from watch import watched_training

    from train import sharded_load

    divide = sharded_load.fully_shard

    def leave_codes(layer: torch.nn.Module, **keywords: Any) -> None:
        codes = {p for p in layer.parameters() if not p.requires_grad and p.shape[-1] == 1}
        assert codes
        divide(layer, ignored_params=codes, **keywords)

    sharded_load.fully_shard = leave_codes
    watched_training(home, options)


def trained_on_a_smaller_plan(home: str, options: tuple[str, ...]) -> None:
    """Train where the plan is two thirds of what it should be."""
    from watch import watched_training

    from train import divided

    planned = divided.planned_bytes
    divided.planned_bytes = lambda setup: planned(setup) * 2 / 3
    watched_training(home, options)


@pytest.mark.parametrize(
    ("strategy", "training"),
    [
        ("fsdp", trained_with_whole_codes),
        ("fsdp", trained_on_a_smaller_plan),
        ("zero3", trained_on_a_smaller_plan),
    ],
)
def test_a_model_that_is_not_divided_as_asked_stops_the_job(
    make_recipe, home: Path, strategy: str, training: Any
) -> None:
    make_recipe()
    options = (f"parallel.strategy={strategy}",)
    prepare(Recipe.load("recipe.yaml", options))
    message = r"each holds [\d.]+ MiB of base and adapters, where [\d.]+ are planned"
    with pytest.raises(AssertionError, match=message) as failed:
        run_ranks(strategy, training, str(home), options)
    assert "rank 0: " in str(failed.value)
    assert "rank 1: " in str(failed.value)
    assert not list((home / "runs").glob("*/*/metrics.jsonl"))
