"""PyTorch's attention kernel for CPUs on the runs of a packed row, keeping no more than it must.

Called through SDPA it keeps its outputs beside their sum, repeats key heads for good, and in bf16
its backward pass takes twice the time that it takes in fp32. Here it computes in fp32, run by run,
and what is kept are the inputs, the output and 4 bytes a token and head. Legend: T tokens, H heads,
K key heads, W width of a head. Knows nothing of where runs come from.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
        """Run by run."""
        out_THW, logs = torch.empty_like(q_THW, memory_format=torch.contiguous_format), []
        heads = _of_runs(sizes, q_THW.shape[1], q_THW, k_TKW, v_TKW)
        for (q, k, v), out, mask in zip(heads, out_THW.split(sizes), masks, strict=True):
            made, log = _FORWARD(q, k, v, 0.0, mask is None, attn_mask=_added(mask), scale=scale)
            out.copy_(made[0].transpose(0, 1))
            logs.append(log)
        ctx.sizes, ctx.masks, ctx.scale = sizes, masks, scale
        ctx.save_for_backward(q_THW, k_TKW, v_TKW, out_THW, *logs)
        return out_THW

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """Run by run; the gradients of key heads that were repeated are summed."""
        q_THW, k_TKW, v_TKW, out_THW, *logs = ctx.saved_tensors
        num_heads, num_keys = q_THW.shape[1], k_TKW.shape[1]
        tensors = (upstream[0], q_THW, k_TKW, v_TKW, out_THW)
        gradients = [torch.empty(t.shape, dtype=t.dtype) for t in tensors[1:4]]
        places = zip(*(gradient.split(ctx.sizes) for gradient in gradients), strict=True)
        of_runs = _of_runs(ctx.sizes, num_heads, *tensors)
        for heads, log, mask, place in zip(of_runs, logs, ctx.masks, places, strict=True):
            options = {"attn_mask": _added(mask), "scale": ctx.scale}
            made = _BACKWARD(*heads, log, 0.0, mask is None, **options)
            for target, gradient in zip(place, made, strict=True):
                by_head = gradient[0].transpose(0, 1)
                if target.shape[1] == num_keys != num_heads:
                    by_head = by_head.unflatten(1, (num_keys, -1)).sum(2)
                target.copy_(by_head)
        return *gradients, None, None, None


def _of_runs(sizes: Sequence[int], num_heads: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Of each run the tensors as the kernel takes them: [1, H, size, W], fp32."""
    for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True):
        yield [_repeated(part.float(), num_heads).transpose(0, 1)[None] for part in parts]


def _repeated(part_THW: Tensor, num_heads: int) -> Tensor:
    times = num_heads // part_THW.shape[1]
    return part_THW.repeat_interleave(times, 1) if times > 1 else part_THW


def _added(mask: Tensor | None) -> Tensor | None:
    """A mask as it is added to the scores."""
    if mask is None:
        return None
    return torch.zeros(mask.shape).masked_fill_(mask.logical_not(), -torch.inf)
