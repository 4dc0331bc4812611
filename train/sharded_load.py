"""Loading under FSDP: each decoder layer is read, given its adapters and divided before the next.

So no rank, and no node, ever holds more of the base than its share, one layer, and the embeddings
and the head, which accelerate divides with the rest when training begins. Knows nothing of data or
steps.
"""

import os

import torch
from accelerate import FullyShardedDataParallelPlugin
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pressroom.nn.pieces import Weights
from pressroom.recipe import Recipe


def applies(recipe: Recipe) -> bool:
    """Whether these ranks were started for FSDP, as the recipe says."""
    is_fsdp = recipe.parallel.strategy.startswith("fsdp")
    return is_fsdp and os.environ.get("ACCELERATE_USE_FSDP") == "true"


def fill(model: PeftModel, weights: Weights, recipe: Recipe, device: torch.device) -> None:
    """Give an empty model its weights and its adapters their start, each layer divided at once.

    Args:
        model: On the meta device, with adapters.
        weights: Of its base.
        recipe: Seed of the adapters' start, which is the one that they have undivided.
        device: Where this rank's part goes.
    """
    plugin = FullyShardedDataParallelPlugin()  # reads what the launcher says, as accelerate will
    base = model.get_base_model()
    torch.manual_seed(recipe.seed)
    for number, layer in enumerate(base.model.layers):
        weights.fill(layer, f"model.layers.{number}.", device)
        _start_adapters(layer, model, is_quantized=recipe.quantization is not None)
        fully_shard(
            layer,
            reshard_after_forward=plugin.reshard_after_forward,
            offload_policy=plugin.cpu_offload,
            mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        )
    weights.fill(base.model, "model.", device)
    if base.config.tie_word_embeddings:
        base.lm_head.weight = base.model.embed_tokens.weight
    else:
        weights.fill(base.lm_head, "lm_head.", device)
    # Its buffers are computed, not stored.
    base.model.rotary_emb = type(base.model.rotary_emb)(base.config).to(device)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not [name for name, tensor in tensors.items() if tensor.is_meta]


def _start_adapters(layer: torch.nn.Module, model: PeftModel, *, is_quantized: bool) -> None:
    """Draw the adapters of a layer as peft draws them when it makes a model."""
    config = model.peft_config["default"]
    for module in layer.modules():
        if isinstance(module, LoraLayer):
            module.update_layer("default", config.r, lora_alpha=config.lora_alpha, config=config)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            # Undivided, TRL rounds those of a quantized base to bf16 first.
            start = parameter.data.bfloat16() if is_quantized else parameter.data
            parameter.data = start.float()
