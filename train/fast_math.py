"""What a decoder layer does besides products: norm, SwiGLU, rotary positions, and their gradients.

Each is one pass over memory where PyTorch compiles it, on a GPU; on a CPU it runs as written.
Legend: T tokens, D hidden size, F the MLP's, H heads, W width of a head. Knows nothing of layers.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._triton import has_triton

P = ParamSpec("P")
R = TypeVar("R")
Tensor = torch.Tensor


def _one_pass(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function for tensors on a GPU, at its first call there."""
    compiled: list[Any] = []

    @functools.wraps(function)
    def run(*arguments: P.args, **keywords: P.kwargs) -> R:
        first: Any = arguments[0]
        if not (first.is_cuda and has_triton()):
            return function(*arguments, **keywords)
        if not compiled:
            compiled.append(torch.compile(function))
        return compiled[0](*arguments, **keywords)

    return run


@_one_pass
def norm_scale(x_TD: Tensor, epsilon: float) -> Tensor:
    """What RMSNorm multiplies each token by: [T, 1], fp32."""
    return torch.rsqrt(x_TD.float().pow(2).mean(-1, keepdim=True) + epsilon)


@_one_pass
def normed(x_TD: Tensor, scale_T1: Tensor, weight_D: Tensor) -> Tensor:
    """RMSNorm, rounded where transformers rounds: before the weight."""
    return (x_TD * scale_T1).to(x_TD.dtype) * weight_D


@_one_pass
def norm_gradient(
    upstream_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, weight_D: Tensor, besides_TD: Tensor | None
) -> Tensor:
    """Gradient of RMSNorm's input, and what else flows to it beside the norm."""
    g_TD = (upstream_TD * weight_D).float()
    n_TD = x_TD * scale_T1
    g_TD = (g_TD - n_TD * (g_TD * n_TD).mean(-1, keepdim=True)) * scale_T1
    return g_TD.to(x_TD.dtype) if besides_TD is None else (g_TD + besides_TD).to(x_TD.dtype)


@_one_pass
def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up."""
    return torch.nn.functional.silu(gate_TF) * up_TF


@_one_pass
def swiglu_again(upstream_TF: Tensor, gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, ...]:
    """SwiGLU once more, for the gradients of what reads it, and its inputs' gradients.

    Returns:
        silu(gate) * up, and the gradients of gate and of up, all [T, F].
    """
    by_gate_TF = torch.ops.aten.silu_backward(upstream_TF * up_TF, gate_TF)
    silu_TF = torch.nn.functional.silu(gate_TF)
    by_up_TF = upstream_TF * silu_TF
    return silu_TF.mul_(up_TF), by_gate_TF, by_up_TF


@_one_pass
def rotated(x_THW: Tensor, cos_T1W: Tensor, sin_T1W: Tensor, sign: float) -> Tensor:
    """Turn the two halves of each head; with sign -1 back again, which is the gradient.

    Args:
        x_THW: Queries or keys.
        cos_T1W: Its halves are the same, as a Llama's are.
        sin_T1W: The same.
        sign: 1 or -1.
    """
    half = x_THW.shape[-1] // 2
    cos, sin = cos_T1W[..., :half], sin_T1W[..., :half] * sign
    first, second = x_THW[..., :half], x_THW[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
