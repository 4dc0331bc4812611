"""A decoder layer in two functions of autograd, around attention: what it keeps is said here.

`Inputs`: norm, queries, keys, values, rotary positions. `Outputs`: attention's projection, norm,
MLP, both residual sums. Neither keeps a normed input or an activation's product: those are made
again from what is there. Legend: T tokens, D hidden size, H heads, K key heads, W width of a head,
Q = H W, F the MLP's. Knows nothing of modules that hold the weights, or of attention.
"""

from collections.abc import Sequence
from typing import Any

import torch

from train.fast_linear import Adapted, Use
from train.fast_math import norm_gradient, norm_scale, normed, rotated, swiglu, swiglu_again

Tensor = torch.Tensor
LEVELS = (0, 1, 2)
"""What is computed again in the backward pass: nothing wide; gate and up, and what dropout drops;
the first residual sum too, and with it attention's projection."""


class Inputs(torch.autograd.Function):
    """The layer's input -> queries [T, H, W], keys and values [T, K, W], turned.

    Keeps its input, and what `Use` keeps of three adapters; cos and sin are shared by all layers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        cos_T1W: Tensor,
        sin_T1W: Tensor,
        norm: tuple[Tensor, float],
        parts: Sequence[Adapted],
        level: int,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Norm, products, rotation."""
        weight_D, epsilon = norm
        scale_T1 = norm_scale(x_TD, epsilon)
        h_TD = normed(x_TD, scale_T1, weight_D)
        uses = [Use.of(*part, h_TD, level) for part in _with(factors, parts)]
        width = cos_T1W.shape[-1]
        q, k, v = (use.output(h_TD).view(len(h_TD), -1, width) for use in uses)
        ctx.parts = parts
        ctx.save_for_backward(x_TD, cos_T1W, sin_T1W, weight_D, scale_T1, *_kept(uses))
        return rotated(q, cos_T1W, sin_T1W, 1.0), rotated(k, cos_T1W, sin_T1W, 1.0), v

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """Gradients of the input, unless nobody asks, and of three adapters."""
        x_TD, cos_T1W, sin_T1W, weight_D, scale_T1, *kept = ctx.saved_tensors
        turned = [rotated(g, cos_T1W, sin_T1W, -1.0) for g in upstream[:2]]
        h_TD = normed(x_TD, scale_T1, weight_D)
        by_h_TD: Tensor | None = None
        of_factors: list[Tensor] = []
        for use, g in zip(_uses(ctx.parts, kept), [*turned, upstream[2]], strict=True):
            g_TO = g.reshape(len(g), -1)
            if ctx.needs_input_grad[0]:
                by_h_TD, *pair = use.gradients(g_TO, h_TD, by_h_TD)
            else:  # in the first layer: embeddings are frozen
                pair = [*use.by_factors(g_TO, use.by_inner(g_TO), h_TD, use.drop(h_TD))]
            of_factors += pair
        by_x_TD = None
        if by_h_TD is not None:
            by_x_TD = norm_gradient(by_h_TD, x_TD, scale_T1, weight_D, None)
        return by_x_TD, None, None, None, None, None, *of_factors


class Outputs(torch.autograd.Function):
    """Attention's output [T, Q] and the layer's input [T, D] -> its output [1, T, D].

    Keeps both, what `Use` keeps of four adapters, and by level the first residual sum, gate and up.
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
        for_o, for_gate, for_up, for_down = _with(factors, parts)
        o = Use.of(*for_o, attended_TQ, level)
        sum_TD = o.output(attended_TQ, x_TD)
        scale_T1 = norm_scale(sum_TD, epsilon)
        h_TD = normed(sum_TD, scale_T1, weight_D)
        gate = Use.of(*for_gate, h_TD, level)
        up = Use.of(*for_up, h_TD, level)
        gate_TF, up_TF = gate.output(h_TD), up.output(h_TD)
        active_TF = swiglu(gate_TF, up_TF)
        down = Use.of(*for_down, active_TF, level)
        y_TD = down.output(active_TF, sum_TD)
        ctx.parts, ctx.level = parts, level
        wide = ([sum_TD, gate_TF, up_TF], [sum_TD], [])[level]
        kept = _kept([o, gate, up, down])
        ctx.save_for_backward(attended_TQ, x_TD, weight_D, scale_T1, *kept, *wide)
        return y_TD.unsqueeze_(0)  # in place: FSDP warns of views

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """Make again what the level did not keep; gradients of both inputs and four adapters."""
        attended_TQ, x_TD, weight_D, scale_T1, *rest = ctx.saved_tensors
        o, gate, up, down = _uses(ctx.parts, rest[:16])
        wide, by_y_TD = rest[16:], upstream[0][0]
        sum_TD = wide[0] if wide else o.output(attended_TQ, x_TD)
        h_TD = normed(sum_TD, scale_T1, weight_D)
        gate_TF, up_TF = wide[1:] or (gate.output(h_TD), up.output(h_TD))
        drop, by_inner = down.drop(gate_TF), down.by_inner(by_y_TD)
        by_active_TF = down.by_input(by_y_TD, by_inner, drop)
        active_TF, by_gate_TF, by_up_TF = swiglu_again(by_active_TF, gate_TF, up_TF)
        del by_active_TF, gate_TF, up_TF
        of_down = down.by_factors(by_y_TD, by_inner, active_TF, drop)
        del active_TF, drop
        by_h_TD, *of_gate = gate.gradients(by_gate_TF, h_TD)
        del by_gate_TF
        by_h_TD, *of_up = up.gradients(by_up_TF, h_TD, by_h_TD)
        del h_TD, by_up_TF
        by_sum_TD = norm_gradient(by_h_TD, sum_TD, scale_T1, weight_D, by_y_TD)
        by_attended_TQ, *of_o = o.gradients(by_sum_TD, attended_TQ)
        of_factors = (*of_o, *of_gate, *of_up, *of_down)
        return by_attended_TQ, by_sum_TD, None, None, None, *of_factors


def _with(
    factors: Sequence[Tensor], parts: Sequence[Adapted]
) -> list[tuple[Adapted, Tensor, Tensor]]:
    """Each part with its A and B."""
    return list(zip(parts, factors[::2], factors[1::2], strict=True))


def _kept(uses: Sequence[Use]) -> list[Tensor | None]:
    """What the backward pass needs of each use: four a use."""
    return [kept for use in uses for kept in use[1:]]


def _uses(parts: Sequence[Adapted], kept: Sequence[Any]) -> list[Use]:
    """The uses that `_kept` was made of."""
    return [Use(part, *kept[4 * i : 4 * i + 4]) for i, part in enumerate(parts)]
