"""A decoder layer in two functions of autograd, around attention: what it keeps is said here.

`Inputs`: norm, queries, keys, values, rotary positions. `Outputs`: attention's projection, norm,
MLP, both residual sums. Neither keeps a normed input or an activation's product: those are made
again from what is there. Legend: T tokens, D hidden size, H heads, K key heads, W width of a head,
Q = H W, F the MLP's. Knows nothing of modules that hold the weights, or of attention.
"""

from collections.abc import Sequence
from typing import Any

import torch

from train.fast_linear import Adapted, again, gradients, inner_gradient, input_gradient, product
from train.fast_math import norm_gradient, norm_scale, normed, rotated, swiglu, swiglu_again

Tensor = torch.Tensor
LEVELS = (0, 1, 2)
"""What is computed again in the backward pass: nothing wide; gate and up; the first residual sum
too, and with it attention's projection."""


class Inputs(torch.autograd.Function):
    """The layer's input -> queries [T, H, W], keys and values [T, K, W], turned.

    Keeps its input and x Aᵀ of three adapters; cos and sin are shared by all layers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        cos_T1W: Tensor,
        sin_T1W: Tensor,
        norm: tuple[Tensor, float],
        parts: Sequence[Adapted],
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Norm, products, rotation."""
        weight_D, epsilon = norm
        scale_T1 = norm_scale(x_TD, epsilon)
        h_TD = normed(x_TD, scale_T1, weight_D)
        made = [
            product(h_TD, part.weight(x_TD.dtype), a, b, part.scaling, None)
            for part, (a, b) in zip(parts, _pairs(factors), strict=True)
        ]
        width = cos_T1W.shape[-1]
        q, k, v = (y.view(len(y), -1, width) for y, _ in made)
        ctx.parts = parts
        inner = [inner for _, inner in made]
        ctx.save_for_backward(x_TD, cos_T1W, sin_T1W, weight_D, scale_T1, *inner, *factors)
        return rotated(q, cos_T1W, sin_T1W, 1.0), rotated(k, cos_T1W, sin_T1W, 1.0), v

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """Gradients of the input, unless nobody asks, and of three adapters."""
        x_TD, cos_T1W, sin_T1W, weight_D, scale_T1, *rest = ctx.saved_tensors
        inner, factors = rest[:3], rest[3:]
        turned = [rotated(g, cos_T1W, sin_T1W, -1.0) for g in upstream[:2]]
        h_TD = normed(x_TD, scale_T1, weight_D)
        by_h_TD: Tensor | None = None
        of_factors: list[Tensor] = []
        for part, (a, b), inner_TR, g in zip(
            ctx.parts, _pairs(factors), inner, [*turned, upstream[2]], strict=True
        ):
            g_TO = g.reshape(len(g), -1)
            by_inner_TR = inner_gradient(g_TO, b, part.scaling)
            of_factors += gradients(g_TO, by_inner_TR, h_TD, inner_TR, part.scaling, a.dtype)
            if ctx.needs_input_grad[0]:  # not in the first layer: embeddings are frozen
                weight = part.weight(x_TD.dtype)
                by_h_TD = input_gradient(g_TO, by_inner_TR, weight, a, by_h_TD)
        by_x_TD = None
        if by_h_TD is not None:
            by_x_TD = norm_gradient(by_h_TD, x_TD, scale_T1, weight_D, None)
        return by_x_TD, None, None, None, None, *of_factors


class Outputs(torch.autograd.Function):
    """Attention's output [T, Q] and the layer's input [T, D] -> its output [1, T, D].

    Keeps both, x Aᵀ of four adapters, and by level the first residual sum, gate and up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        attended_TQ: Tensor,
        x_TD: Tensor,
        norm: tuple[Tensor, float],
        parts: Sequence[Adapted],
        level: int,
        *factors: Tensor,
    ) -> Tensor:
        """Projection, sum, norm, MLP, sum."""
        weight_D, epsilon = norm
        o, gate, up, down = parts
        (ao, bo), (ag, bg), (au, bu), (ad, bd) = _pairs(factors)
        dtype = x_TD.dtype
        sum_TD, inner_o = product(attended_TQ, o.weight(dtype), ao, bo, o.scaling, x_TD)
        scale_T1 = norm_scale(sum_TD, epsilon)
        h_TD = normed(sum_TD, scale_T1, weight_D)
        gate_TF, inner_g = product(h_TD, gate.weight(dtype), ag, bg, gate.scaling, None)
        up_TF, inner_u = product(h_TD, up.weight(dtype), au, bu, up.scaling, None)
        active_TF = swiglu(gate_TF, up_TF)
        y_TD, inner_d = product(active_TF, down.weight(dtype), ad, bd, down.scaling, sum_TD)
        ctx.parts, ctx.level = parts, level
        wide = ([sum_TD, gate_TF, up_TF], [sum_TD], [])[level]
        inner = (inner_o, inner_g, inner_u, inner_d)
        ctx.save_for_backward(attended_TQ, x_TD, weight_D, scale_T1, *inner, *factors, *wide)
        return y_TD.unsqueeze_(0)  # in place: FSDP warns of views

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """Make again what the level did not keep; gradients of both inputs and four adapters."""
        attended_TQ, x_TD, weight_D, scale_T1, *rest = ctx.saved_tensors
        inner_o, inner_g, inner_u, inner_d = rest[:4]
        (ao, bo), (ag, bg), (au, bu), (ad, bd) = _pairs(rest[4:12])
        wide = rest[12:]
        o, gate, up, down = ctx.parts
        dtype, by_y_TD = x_TD.dtype, upstream[0][0]
        if wide:
            sum_TD = wide[0]
        else:
            sum_TD = again(attended_TQ, inner_o, o.weight(dtype), bo, o.scaling, x_TD)
        h_TD = normed(sum_TD, scale_T1, weight_D)
        if ctx.level == 0:
            gate_TF, up_TF = wide[1:]
        else:
            gate_TF = again(h_TD, inner_g, gate.weight(dtype), bg, gate.scaling)
            up_TF = again(h_TD, inner_u, up.weight(dtype), bu, up.scaling)
        by_inner_d = inner_gradient(by_y_TD, bd, down.scaling)
        by_active_TF = input_gradient(by_y_TD, by_inner_d, down.weight(dtype), ad)
        active_TF, by_gate_TF, by_up_TF = swiglu_again(by_active_TF, gate_TF, up_TF)
        del by_active_TF, gate_TF, up_TF
        of_down = gradients(by_y_TD, by_inner_d, active_TF, inner_d, down.scaling, ad.dtype)
        del active_TF
        by_inner_g = inner_gradient(by_gate_TF, bg, gate.scaling)
        by_inner_u = inner_gradient(by_up_TF, bu, up.scaling)
        of_gate = gradients(by_gate_TF, by_inner_g, h_TD, inner_g, gate.scaling, ag.dtype)
        of_up = gradients(by_up_TF, by_inner_u, h_TD, inner_u, up.scaling, au.dtype)
        by_h_TD = input_gradient(by_gate_TF, by_inner_g, gate.weight(dtype), ag)
        by_h_TD = input_gradient(by_up_TF, by_inner_u, up.weight(dtype), au, by_h_TD)
        del h_TD, by_gate_TF, by_up_TF
        by_sum_TD = norm_gradient(by_h_TD, sum_TD, scale_T1, weight_D, by_y_TD)
        by_inner_o = inner_gradient(by_sum_TD, bo, o.scaling)
        of_o = gradients(by_sum_TD, by_inner_o, attended_TQ, inner_o, o.scaling, ao.dtype)
        by_attended_TQ = input_gradient(by_sum_TD, by_inner_o, o.weight(dtype), ao)
        of_factors = (*of_o, *of_gate, *of_up, *of_down)
        return by_attended_TQ, by_sum_TD, None, None, None, *of_factors


def _pairs(factors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """A and B of each part."""
    return list(zip(factors[::2], factors[1::2], strict=True))
