"""A Llama of any size with random weights, quantized layer by layer on its device.

No download, and no more host memory than a config takes: 70B in about a minute on a large GPU.
Weights are drawn as a Llama's are, so that activations neither vanish nor overflow; they are
never zeros, on which a GPU runs faster.
"""

import math

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pressroom.geometry import Geometry

_STD = 0.02


def config_of(geometry: Geometry) -> LlamaConfig:
    """The transformers config of a geometry."""
    return LlamaConfig(
        vocab_size=geometry.vocab_size,
        hidden_size=geometry.hidden_size,
        intermediate_size=geometry.intermediate_size,
        num_hidden_layers=geometry.num_layers,
        num_attention_heads=geometry.num_heads,
        num_key_value_heads=geometry.num_kv_heads,
        max_position_embeddings=geometry.max_positions,
        tie_word_embeddings=geometry.tied_embeddings,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
        attn_implementation="sdpa",
    )


def random_base(geometry: Geometry, device: torch.device, seed: int = 0) -> LlamaForCausalLM:
    """A frozen NF4 base with double quantization and bf16 storage, as `load_base` makes one."""
    config = config_of(geometry)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    generator = torch.Generator(device).manual_seed(seed)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    into_residual = name in ("o_proj", "down_proj")
                    std = _STD / math.sqrt(2 * geometry.num_layers) if into_residual else _STD
                    setattr(parent, name, _quantized(linear, std, generator))
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            model.get_submodule(name.rpartition(".")[0]).weight = _drawn(parameter, generator)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    model.is_loaded_in_4bit = True
    return model.requires_grad_(False).eval()


def _quantized(linear: torch.nn.Linear, std: float, generator: torch.Generator) -> Linear4bit:
    quantized = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        quant_storage=torch.bfloat16,
        device="meta",
    )
    weight = _normal(linear.weight.shape, std, generator)
    quantized.weight = Params4bit(
        weight,
        quant_type="nf4",
        compress_statistics=True,
        quant_storage=torch.bfloat16,
        module=quantized,
    ).to(generator.device)
    quantized.support_avx512bf16_for_cpu = False  # as load_base, see there
    return quantized


def _drawn(parameter: torch.nn.Parameter, generator: torch.Generator) -> torch.nn.Parameter:
    """A norm's weight is one; embeddings and the head are random."""
    if parameter.dim() == 1:
        return torch.nn.Parameter(torch.ones_like(parameter, device=generator.device))
    return torch.nn.Parameter(_normal(parameter.shape, _STD, generator))


def _normal(shape: torch.Size, std: float, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.bfloat16)
    return values.mul_(std)
