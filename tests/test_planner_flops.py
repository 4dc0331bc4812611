"""Counted FLOPs are those that torch counts on a real forward and backward pass."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaForCausalLM

from pressroom.geometry import Geometry
from pressroom.planner.flops import executed
from pressroom.planner.weights import ATTENTION
from pressroom.recipe import Recipe
from pressroom.train_sections import Lora
from train.model import with_adapters

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from random_model import config_of

GEOMETRY = Geometry(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=320,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
)


def _forward(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(
    gradient: torch.Size,
    query: torch.Size,
    key: torch.Size,
    value: torch.Size,
    *_: object,
    **__: object,
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""torch counts the kernels of GPUs; the CPU's take the same arguments."""


@pytest.mark.parametrize(
    "targets", ["all-linear", ATTENTION, ("up_proj",), ("o_proj", "down_proj")]
)
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("tokens", [64, 192])
def test_flops_are_torchs(make_recipe, mode: str, targets: object, tokens: int) -> None:
    lora = Lora(r=8, target_modules=targets)
    make_recipe(
        quantization=None,
        memory={"precision": "fp32", "activation_checkpointing": mode},
        lora={"r": 8, "target_modules": targets if isinstance(targets, str) else list(targets)},
    )
    recipe = Recipe.load("recipe.yaml")
    base = LlamaForCausalLM(config_of(GEOMETRY)).float().requires_grad_(False)
    model = with_adapters(base, recipe)
    if mode == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(3, 512, (1, tokens))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        model(input_ids=ids, use_cache=False).logits.float().sum().backward()
    counted = executed(GEOMETRY, lora, recipe.memory, tokens, tokens)
    assert counter.get_total_flops() == counted.total
