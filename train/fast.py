"""Lean decoder layers: the same numbers as transformers' and PEFT's, in less time and memory.

`speed_up` gives each decoder layer that it knows another forward, which trains packed rows by the
functions of `train/fast_layer.py`. The modules stay where they are, so saving and merging see what
they always saw. Whatever else is asked of a layer (evaluation, generation, an adapter that is
merged) its own forward does. Knows nothing of recipes or steps.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from train.articles import Articles
from train.attention import backend_of
from train.attention_backends import BACKENDS
from train.fast_layer import Inputs, Outputs
from train.fast_linear import Adapted, why_not_plain


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a model's decoder layers."""

    patched: int
    skipped: int
    reasons: dict[str, int]
    """Why a layer stayed as it is -> how many."""
    cached: int = 0
    """Bytes of weights that are dequantized once."""

    def __str__(self) -> str:
        text = f"{self.patched} of {self.patched + self.skipped} decoder layers are fused"
        if self.cached:
            text += f", their weights dequantized once ({self.cached / 2**30:.2f} GiB)"
        return text + "".join(f"; {n} stay plain: {why}" for why, n in self.reasons.items())


def speed_up(model: torch.nn.Module, *, level: int = 0, is_cached: bool = False) -> Report:
    """Give a model's decoder layers their lean forward, where they are what it knows.

    Args:
        model: With adapters; a model's layers are found by their class.
        level: What is computed again: `train/fast_layer.py`.
        is_cached: Whether 4-bit weights that are not divided are dequantized once.
    """
    layers = [m for m in model.modules() if isinstance(m, LlamaDecoderLayer)]
    reasons = [why_not(layer) for layer in layers]
    lean = [layer for layer, why in zip(layers, reasons, strict=True) if why is None]
    parts = {layer: [Adapted(p) for p in _projections(layer)] for layer in lean}
    every = [part for of_layer in parts.values() for part in of_layer]
    cached = 0
    if lean and is_cached:
        dtype = lean[0].input_layernorm.weight.dtype
        cached = sum(part.keep_weight(dtype) for part in every)
    for layer in lean:
        layer.forward = _forward(layer, parts[layer], level)
    told = Counter(why for why in reasons if why)
    return Report(patched=len(lean), skipped=told.total(), reasons=dict(told), cached=cached)


def slow_down(model: torch.nn.Module) -> None:
    """Give all layers their own forward back, and let go of weights that were dequantized."""
    for module in model.modules():
        if isinstance(module, LlamaDecoderLayer):
            vars(module).pop("forward", None)


def why_not(layer: LlamaDecoderLayer) -> str | None:
    """Why a layer must stay as it is; None where it need not."""
    if backend_of(layer.self_attn.config._attn_implementation) is None:
        return "attention is not told where articles begin"
    if layer.self_attn.attention_dropout:
        return "dropout in attention"
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if not all(type(norm) is LlamaRMSNorm and not norm.weight.requires_grad for norm in norms):
        return "its norms are not a Llama's, or are trained"
    if type(layer.mlp.act_fn) is not type(ACT2FN["silu"]):
        return "its activation is not SiLU"
    for part in _projections(layer):
        if why := why_not_plain(part):
            return why
    inner = [module for module in layer.modules() if module is not layer]
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in inner):
        return "hooks inside of it, which would not be called"
    if any(hasattr(p, "ds_id") for p in layer.parameters()):
        return "ZeRO-3 gathers weights module by module"
    return None


def _projections(layer: LlamaDecoderLayer) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (*of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _forward(layer: LlamaDecoderLayer, parts: list[Adapted], level: int) -> Callable[..., Any]:
    """The forward that a layer gets."""
    plain = type(layer).forward.__get__(layer)

    def lean(hidden_1TD: torch.Tensor, articles: Articles, positions: Any) -> torch.Tensor:
        x_TD = hidden_1TD[0]
        cos_T1W, sin_T1W = (t[0][:, None] for t in positions)
        attention, factors = layer.self_attn, [f for part in parts for f in part.factors]
        before, after = (
            (norm.weight, norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        attend = BACKENDS[backend_of(attention.config._attn_implementation) or "blocks"]
        with torch.autocast(x_TD.device.type, enabled=False):
            heads = Inputs.apply(x_TD, cos_T1W, sin_T1W, before, parts[:3], *factors[:6])
            q, k, v = heads
            attended_TQ = attend(q, k, v, articles, attention.scaling).reshape(len(x_TD), -1)
            return Outputs.apply(attended_TQ, x_TD, after, parts[3:], level, *factors[6:])

    def forward(hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        articles = keywords.get("articles")
        same = all(p.layer is q for p, q in zip(parts, _projections(layer), strict=True))
        is_row = layer.training and len(hidden_states) == 1
        if not (articles and is_row and same and all(part.is_plain for part in parts)):
            return plain(hidden_states, *arguments, **keywords)
        positions = keywords["position_embeddings"]
        if layer.gradient_checkpointing:
            return layer._gradient_checkpointing_func(lean, hidden_states, articles, positions)
        return lean(hidden_states, articles, positions)

    return forward
