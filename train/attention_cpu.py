"""Attention on a CPU, on the runs of a packed row: scores in fp32, the other products in the dtype.

PyTorch's kernel for CPUs computes head by head, at a third of the rate of one product for all of
them. Scores and their gradients are fp32, and rounded for what they are multiplied with, as in
FlashAttention. Kept are the inputs alone: scores are made again, those of some queries at a time.
Legend: T tokens, H heads, K key heads, G heads that share one, B queries at a time, M = G B, N keys
that they see, W width of a head. Knows nothing of where runs come from.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
SCORES = 2**18
"""That there are at a time: a MiB of them, which stays in a core's cache."""


class Runs(torch.autograd.Function):
    """Queries [T, H, W], keys and values [T, K, W] -> [T, H, W].

    `sizes` are the runs' tokens; `masks` [1, 1, size, size] say what is seen, None all before.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_THW: Tensor,
        k_TKW: Tensor,
        v_TKW: Tensor,
        sizes: Sequence[int],
        masks: Sequence[Tensor | None],
        scale: float,
    ) -> Tensor:
        """Some queries of a run at a time."""
        ctx.sizes, ctx.masks, ctx.scale = sizes, masks, scale
        ctx.save_for_backward(q_THW, k_TKW, v_TKW)
        q_KGTW, k_KTW, v_KTW = _by_head(q_THW, k_TKW, v_TKW)
        scaled_KGTW, float_k_KTW = q_KGTW.float() * scale, k_KTW.float()
        out_THW = torch.empty_like(q_THW, memory_format=torch.contiguous_format)
        out_KGTW = _by_head(out_THW, k_TKW, v_TKW)[0]
        for queries, keys, added_BN in _parts(sizes, masks, q_THW.shape[1]):
            p_KMN = _shares(scaled_KGTW[:, :, queries], float_k_KTW[:, keys], added_BN)
            made_KMW = p_KMN.to(v_KTW.dtype) @ v_KTW[:, keys]
            out_KGTW[:, :, queries] = made_KMW.unflatten(1, (-1, len(added_BN)))
        return out_THW

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """The same again, and four products; those of heads that share keys add up in them."""
        q_THW, k_TKW, v_TKW = ctx.saved_tensors
        q_KGTW, k_KTW, v_KTW = _by_head(q_THW, k_TKW, v_TKW)
        g_KGTW = _by_head(upstream[0], k_TKW, v_TKW)[0]
        sums = [torch.zeros(t.shape) for t in (q_THW, k_TKW, v_TKW)]
        by_q_KGTW, by_k_KTW, by_v_KTW = _by_head(*sums)
        scaled_KGTW, float_k_KTW = q_KGTW.float() * ctx.scale, k_KTW.float()
        float_g_KGTW, float_v_KTW = g_KGTW.float(), v_KTW.float()
        for queries, keys, added_BN in _parts(ctx.sizes, ctx.masks, q_THW.shape[1]):
            q_KMW, g_KMW, float_g_KMW = (
                t[:, :, queries].flatten(1, 2) for t in (q_KGTW, g_KGTW, float_g_KGTW)
            )
            p_KMN = _shares(scaled_KGTW[:, :, queries], float_k_KTW[:, keys], added_BN)
            by_p_KMN = float_g_KMW @ float_v_KTW[:, keys].mT
            by_v_KTW[:, keys] += p_KMN.to(g_KMW.dtype).mT @ g_KMW
            # Softmax's own backward adds in another order where there are more threads.
            total_KM1 = (by_p_KMN * p_KMN).sum(-1, keepdim=True)
            by_s_KMN = by_p_KMN.sub_(total_KM1).mul_(p_KMN).mul_(ctx.scale).to(q_KMW.dtype)
            by_k_KTW[:, keys] += by_s_KMN.mT @ q_KMW
            by_q_KMW = by_s_KMN @ k_KTW[:, keys]
            by_q_KGTW[:, :, queries] = by_q_KMW.unflatten(1, (-1, len(added_BN)))
        return *(s.to(q_THW.dtype) for s in sums), None, None, None


def _by_head(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as [K, G, T, W], [K, T, W] and [K, T, W]."""
    q_TKGW = q_THW.unflatten(1, (k_TKW.shape[1], -1))
    return q_TKGW.permute(1, 2, 0, 3), k_TKW.transpose(0, 1), v_TKW.transpose(0, 1)


def _parts(
    sizes: Sequence[int], masks: Sequence[Tensor | None], num_heads: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Queries, the keys up to the last of them, and what is added to their scores, [B, N]."""
    start = 0
    for size, mask in zip(sizes, masks, strict=True):
        most = max(SCORES // (num_heads * size), 32)
        for first in range(0, size, most):
            last = min(first + most, size)
            if mask is None:
                added_BN = torch.full((last - first, last), -torch.inf).triu_(first + 1)
            else:
                hidden_BN = mask[0, 0, first:last, :last].logical_not()
                added_BN = torch.zeros(hidden_BN.shape).masked_fill_(hidden_BN, -torch.inf)
            yield slice(start + first, start + last), slice(start, start + last), added_BN
        start += size


def _shares(q_KGBW: Tensor, k_KNW: Tensor, added_BN: Tensor) -> Tensor:
    """What share of each query's attention a key has, [K, M, N]."""
    scores_KMN = q_KGBW.flatten(1, 2) @ k_KNW.mT
    scores_KMN.unflatten(1, (-1, len(added_BN))).add_(added_BN)
    return scores_KMN.softmax(-1)
