"""A frozen layer, 4-bit or not, and its adapter as one product, and the gradients it owes.

y = x Wᵀ + s (x Aᵀ) Bᵀ: the thin product first, then the large one on top of it, so that the wide
sum is never made by itself. What is kept for the backward pass is x Aᵀ, and x by whoever calls.
Legend: T tokens, I inputs, O outputs, R rank. Knows nothing of what lies around a layer.
"""

import copy
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import Linear, Linear4bit

Tensor = torch.Tensor


class Adapted:
    """PEFT's layer: its weight and adapter are read when they are used.

    FSDP gathers the weight just before, and the trainer casts the adapters in place.

    Args:
        layer: PEFT's, around one of bitsandbytes or of PyTorch.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._kept: tuple[Any, Tensor] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether one unmerged adapter is in force, and nothing else."""
        return why_not_plain(self.layer) is None

    @property
    def scaling(self) -> float:
        """What the adapter's product is multiplied by."""
        return float(self.layer.scaling[self.layer.active_adapters[0]])

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, I] and B [O, R], as they are trained."""
        name = self.layer.active_adapters[0]
        return self.layer.lora_A[name].weight, self.layer.lora_B[name].weight

    def weight(self, dtype: torch.dtype) -> Tensor:
        """[O, I], dequantized as bitsandbytes' forward does: at once to the dtype computed in."""
        base = self.layer.get_base_layer()
        if not isinstance(base, bnb.nn.Linear4bit):
            return base.weight.to(dtype)
        if self._kept and self._kept[0] is base.weight and self._kept[1].dtype == dtype:
            return self._kept[1]
        # Under FSDP the gathered weight has lost its scales; the layer still has them.
        state = copy.copy(getattr(base.weight, "quant_state", None) or base.quant_state)
        state.dtype = dtype
        return bnb.functional.dequantize_4bit(base.weight.data.view(-1, 1), state)

    def keep_weight(self, dtype: torch.dtype) -> int:
        """Dequantize once for all a 4-bit weight that is not divided; the bytes that this takes."""
        base = self.layer.get_base_layer()
        if not isinstance(base, bnb.nn.Linear4bit) or hasattr(base.weight, "full_tensor"):
            return 0
        dense = self.weight(dtype)
        self._kept = base.weight, dense
        return dense.numel() * dense.element_size()


def why_not_plain(layer: Any) -> str | None:
    """Why a layer is more, or less, than a frozen weight and one adapter; None where it is not."""
    if not isinstance(layer, (Linear, Linear4bit)):  # which FSDP's way of loading calls Linear
        return "a linear layer without adapter, or of another kind"
    base, active = layer.get_base_layer(), layer.active_adapters
    if type(base) not in (bnb.nn.Linear4bit, torch.nn.Linear) or base.bias is not None:
        return "a bias, or another kind of linear layer"
    if layer.disable_adapters or layer.merged:
        return "its adapter is merged or switched off"
    if len(active) != 1 or active[0] not in layer.lora_A:
        return "not one adapter"
    (name,) = active
    if name in layer.lora_variant or layer.lora_bias.get(name):
        return "another kind of adapter, such as DoRA"
    if getattr(layer.lora_dropout[name], "p", 0):
        return "dropout"
    return None


def product(
    x_TI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float, onto: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The layer's output.

    Args:
        x_TI: Its input.
        weight_OI: Dequantized.
        a_RI: The adapter's first factor, in any dtype.
        b_OR: Its second.
        scaling: Of the adapter.
        onto: [T, O], what the output is added to, or None.

    Returns:
        y [T, O], and x Aᵀ [T, R], which the backward pass needs.
    """
    inner_TR = x_TI @ a_RI.to(x_TI.dtype).t()
    return again(x_TI, inner_TR, weight_OI, b_OR, scaling, onto), inner_TR


def again(
    x_TI: Tensor,
    inner_TR: Tensor,
    weight_OI: Tensor,
    b_OR: Tensor,
    scaling: float,
    onto: Tensor | None = None,
) -> Tensor:
    """The output [T, O] where x Aᵀ is there already: bit by bit what `product` gave."""
    second_RO = b_OR.to(x_TI.dtype).t() * scaling
    y_TO = inner_TR @ second_RO if onto is None else torch.addmm(onto, inner_TR, second_RO)
    return y_TO.addmm_(x_TI, weight_OI.t())


def inner_gradient(upstream_TO: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """Gradient of x Aᵀ [T, R]."""
    return (upstream_TO @ b_OR.to(upstream_TO.dtype)).mul_(scaling)


def gradients(
    upstream_TO: Tensor,
    by_inner_TR: Tensor,
    x_TI: Tensor,
    inner_TR: Tensor,
    scaling: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Gradients of A and B, in the dtype that they are trained in."""
    by_b_OR = upstream_TO.t() @ (inner_TR * scaling)
    return (by_inner_TR.t() @ x_TI).to(dtype), by_b_OR.to(dtype)


def input_gradient(
    upstream_TO: Tensor,
    by_inner_TR: Tensor,
    weight_OI: Tensor,
    a_RI: Tensor,
    onto: Tensor | None = None,
) -> Tensor:
    """Gradient of x [T, I]; added to `onto` in place, where that is given."""
    a_RI = a_RI.to(upstream_TO.dtype)
    by_x_TI = by_inner_TR @ a_RI if onto is None else onto.addmm_(by_inner_TR, a_RI)
    return by_x_TI.addmm_(upstream_TO, weight_OI)
