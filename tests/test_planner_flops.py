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
from train import attention, fast
from train.articles import Articles
from train.model import with_adapters
from train.speed import LEVELS

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


def _added(onto: torch.Size, a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    return 2 * a[0] * a[1] * b[1]


IN_PLACE = {torch.ops.aten.addmm_: _added}


@pytest.mark.parametrize("save", ["all", "less", "least"])
def test_flops_of_lean_layers_are_torchs(make_recipe, save: str) -> None:
    """Attention on a CPU visits some queries at a time, and is left out on both sides."""
    make_recipe(quantization=None, memory={"precision": "fp32"}, lora={"r": 8})
    recipe = Recipe.load("recipe.yaml")
    base = LlamaForCausalLM(config_of(GEOMETRY)).float().requires_grad_(False)
    model = with_adapters(base, recipe).train()
    attention.attach(base, "blocks")
    assert fast.speed_up(model, level=LEVELS[save]).patched == GEOMETRY.num_layers
    tokens = 96
    articles = Articles([tokens], torch.zeros(0), torch.zeros(tokens), "blocks")
    inputs = {"articles": articles, "attention_mask": torch.empty(1, 1, 0, 0)}
    inputs["input_ids"] = torch.randint(3, 512, (1, tokens))
    counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    with counter:
        model(**inputs, use_cache=False).logits.float().sum().backward()
    found = counter.get_flop_counts()["Global"]
    visited = sum(flops for operation, flops in found.items() if "bmm" in str(operation))
    counted = executed(GEOMETRY, recipe.lora, recipe.memory, tokens, tokens, save)
    assert sum(found.values()) - visited == counted.total - counted.attention


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
