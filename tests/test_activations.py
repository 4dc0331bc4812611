"""Layers that are computed again give the very gradients of layers that are not."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training import losses, train

from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from train import activations
from train.model import with_adapters

ROWS = torch.tensor([[*range(50), *range(30), *range(48)]])
"""Positions of a row of three articles."""
BF16 = (
    "memory.precision=bf16",
    "quantization.compute_dtype=bfloat16",
    "quantization.storage_dtype=bfloat16",
)
BASES = {
    "qlora-fp32": (),
    "qlora-bf16": BF16,
    "lora-fp32": ("quantization=null",),
    "lora-bf16": ("quantization=null", "memory.precision=bf16"),
}


class Counted(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1]
        if name == "mm" and 4 in (*args[0].shape, *args[1].shape):
            name = "thin mm"
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def model_of(tiny_model: Path, *overrides: str) -> torch.nn.Module:
    recipe = Recipe.load("recipe.yaml", overrides)
    base = load_base(tiny_model, recipe.quantization, recipe.memory.precision, torch.device("cpu"))
    model = with_adapters(base, recipe)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients(tiny_model: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Of one forward and backward pass; every case draws the same random numbers."""
    model = model_of(tiny_model, *overrides)
    torch.manual_seed(3)
    ids = torch.randint(3, 512, ROWS.shape)
    model(input_ids=ids, position_ids=ROWS, labels=ids, use_cache=False).loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {**found, "state of random numbers": torch.get_rng_state()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("base", BASES)
def test_gradients_are_the_same_to_the_bit(
    make_recipe, tiny_model: Path, base: str, dropout: float
) -> None:
    make_recipe(lora={"r": 4, "alpha": 8, "dropout": dropout})
    plain = gradients(tiny_model, *BASES[base])
    again = gradients(tiny_model, *BASES[base], "memory.activation_checkpointing=selective")
    assert plain.keys() == again.keys()
    assert all(bool(plain[name].any()) for name in plain)
    assert [n for n in plain if not torch.equal(plain[n], again[n])] == []


@pytest.mark.parametrize(("base", "product"), [("qlora-bf16", "gemm_4bit"), ("lora-bf16", "mm")])
def test_products_and_attention_are_not_computed_again(
    make_recipe, tiny_model: Path, base: str, product: str
) -> None:
    make_recipe()
    counts = {}
    for mode in ("none", "selective"):
        overrides = (*BASES[base], f"memory.activation_checkpointing={mode}")
        model = model_of(tiny_model, *overrides)
        ids = torch.randint(3, 512, ROWS.shape)
        with Counted() as counted:
            model(input_ids=ids, position_ids=ROWS, labels=ids, use_cache=False).loss.backward()
        counts[mode] = counted.calls
    plain, again = counts["none"], counts["selective"]
    for name in (product, "_scaled_dot_product_flash_attention_for_cpu"):
        assert plain[name] == again[name] > 0
    # In both layers the activation and, but for the last, each adapter's second product.
    assert again["silu"] == 2 * plain["silu"]
    assert again["thin mm"] == plain["thin mm"] + 2 * 6
    assert again["rsqrt"] > plain["rsqrt"]


def test_training_loses_the_same(make_recipe, monkeypatch) -> None:
    make_recipe(lora={"r": 4, "alpha": 8, "dropout": 0.1}, evaluation={"every_steps": 3})
    plain = losses(train("speed.save=plain"))
    asked = []
    original = activations._is_kept

    def watched(*arguments, **options) -> bool:
        asked.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(activations, "_is_kept", watched)
    assert losses(train("memory.activation_checkpointing=selective")) == plain
    assert asked
