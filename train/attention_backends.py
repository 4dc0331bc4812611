"""Ways to attend among articles: each the same function of queries, keys, values and articles.

Legend: T tokens of a micro-batch, H heads, K key heads, W width of a head. Knows nothing of models,
or of which of these this machine has.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from train.articles import Articles
from train.attention_cpu import Runs

Tensor = torch.Tensor


def _varlen(
    q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float
) -> Tensor:
    """FlashAttention-2 as it comes with PyTorch."""
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = articles.starts, articles.longest
    # How one asks for causality, scale and shared key heads changed from version to version.
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"enable_gqa": True, "scale": scale}
    options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    options = {name: value for name, value in options.items() if name in known}
    varlen: Any = varlen_attn
    return varlen(q_THW, k_TKW, v_TKW, starts, starts, longest, longest, **options)


def _fa2(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float) -> Tensor:
    """FlashAttention from the package of that name."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    starts, longest = articles.starts, articles.longest
    return flash_attn_varlen_func(
        *(q_THW, k_TKW, v_TKW, starts, starts, longest, longest),
        causal=True,
        softmax_scale=scale,
    )


_compiled_flex: list[Any] = []


def _flex(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float) -> Tensor:
    """FlexAttention, compiled for a GPU; uncompiled it holds all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    if not _compiled_flex:
        _compiled_flex.append(torch.compile(flex_attention))
    attention = _compiled_flex[0] if q_THW.is_cuda else flex_attention
    heads = (t.transpose(0, 1)[None] for t in (q_THW, k_TKW, v_TKW))
    is_shared = q_THW.shape[1] != k_TKW.shape[1]
    out = attention(*heads, block_mask=articles.block_mask, scale=scale, enable_gqa=is_shared)
    return out[0].transpose(0, 1)


def _blocks(
    q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float
) -> Tensor:
    """PyTorch's SDPA, article by article, or run by run of short ones."""
    sizes = [run.size for run in articles.runs]
    if q_THW.device.type == "cpu":
        return Runs.apply(q_THW, k_TKW, v_TKW, sizes, articles.masks, scale)
    return by_sdpa(q_THW, k_TKW, v_TKW, sizes, articles.masks, scale)


def by_sdpa(
    q_THW: Tensor,
    k_TKW: Tensor,
    v_TKW: Tensor,
    sizes: Sequence[int],
    masks: Sequence[Tensor | None],
    scale: float,
) -> Tensor:
    """What `attention_cpu.Runs` computes, on any device."""
    shared = q_THW.shape[1] // k_TKW.shape[1]
    if shared > 1:  # with a mask, no fused kernel takes fewer key heads
        k_TKW, v_TKW = (t.repeat_interleave(shared, 1) for t in (k_TKW, v_TKW))
    parts = (t.transpose(0, 1)[None].split(sizes, 2) for t in (q_THW, k_TKW, v_TKW))
    out = [
        scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        for q, k, v, mask in zip(*parts, masks, strict=True)
    ]
    return torch.cat([piece[0].transpose(0, 1) for piece in out])


Attend = Callable[[Tensor, Tensor, Tensor, Articles, float], Tensor]
BACKENDS: dict[str, Attend] = {
    "varlen": _varlen,
    "fa2": _fa2,
    "flex": _flex,
    "blocks": _blocks,
}
"""By name, the best first: q [T, H, W], k, v [T, K, W], articles, scale -> [T, H, W]."""
