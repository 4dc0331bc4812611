"""The model that is trained: the frozen NF4 base with LoRA adapters. Names peft.

Knows nothing of data, steps or runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import deepspeed_config

from pressroom.base_model import local_folder
from pressroom.nn.nf4 import load_base
from pressroom.nn.pieces import Weights, empty_model
from pressroom.recipe import Recipe
from pressroom.train_sections import Lora
from train import sharded_load
from train.activations import keep_products


def build(recipe: Recipe, folder: Path, device: torch.device) -> PeftModel:
    """Load the base and give it adapters, which start as zero.

    Args:
        recipe: Quantization, precision, adapters and the seed of their start.
        folder: The base model.
        device: Where this rank keeps it, or its part.
    """
    quantization, precision = recipe.quantization, recipe.memory.precision
    if sharded_load.applies(recipe):
        with torch.device("meta"):
            model = with_adapters(empty_model(folder, quantization, precision), recipe)
        weights = Weights(folder, quantization, precision)
        sharded_load.fill(model, weights, recipe, device)
    else:
        # ZeRO-3 places parameters itself, and transformers refuses a device beside it.
        place = None if recipe.parallel.strategy.startswith("zero3") else device
        with _zero3_precision(recipe):
            base = load_base(folder, quantization, precision, place)
        model = with_adapters(base, recipe)
    # The adapter says which base it is for: a hub id, or a path that holds from anywhere.
    is_local = local_folder(recipe.model.base).is_dir()
    name = str(folder.absolute()) if is_local else recipe.model.base
    model.peft_config["default"].base_model_name_or_path = name
    return model


def with_adapters(base: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """Give a frozen base the recipe's adapters, which start as zero; ready to train."""
    base.config.use_cache = False
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.register_state_dict_post_hook(_without_scales)
    torch.manual_seed(recipe.seed)
    model = get_peft_model(base, lora_config(recipe.lora)).train()
    if recipe.memory.activation_checkpointing == "selective":
        keep_products(base, recipe.lora.r)
    if recipe.memory.precision == "bf16":
        # Around the innermost forward: DeepSpeed's engine switches off what is opened outside it.
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        model.forward = torch.autocast(kind, torch.bfloat16)(model.forward)
    return model


def _without_scales(module: Linear4bit, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the scales of frozen codes out of checkpoints.

    DeepSpeed leaves out frozen parameters, but scales are none: at 70B a GB on every rank.
    """
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]


@contextmanager
def _zero3_precision(recipe: Recipe) -> Iterator[None]:
    """Have ZeRO-3 load a bf16 base as bf16.

    It divides what is not quantized while it loads, in the precision of DeepSpeed's own config.
    That says fp32, for in training bf16 there would round the adapters: the base took twice the
    memory, and computed other losses.
    """
    config = deepspeed_config()
    if config is None or recipe.memory.precision != "bf16":
        yield
        return
    config["bf16"] = {"enabled": True}
    try:
        yield
    finally:
        del config["bf16"]


def lora_config(lora: Lora) -> LoraConfig:
    """A recipe's adapters in peft's words."""
    targets = lora.target_modules
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def adapters_to_fp32(model: torch.nn.Module) -> None:
    """Keep the trained weights in fp32.

    TRL casts QLoRA's adapters to bf16, which rounds small Adam updates away, and a resumed run
    loads them in fp32: its losses would differ from those of a run that was never stopped.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
