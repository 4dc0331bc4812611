"""A frozen layer, 4-bit or not, and its adapter as one product, and the gradients it owes.

y = x Wᵀ + s (d(x) Aᵀ) Bᵀ, d being dropout: the thin product first, then the large one on top of it,
so that the wide sum is never made by itself. What is kept for the backward pass is d(x) Aᵀ and
what was dropped, and x by whoever calls.
Legend: T tokens, I inputs, O outputs, R rank. Knows nothing of what lies around a layer.
"""

import copy
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from peft.tuners.lora import Linear, Linear4bit

from train.fast_dropout import Drop, again, drawn

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
    def dropout(self) -> float:
        """With which probability an element of the adapter's input is dropped, in training."""
        module = self.layer.lora_dropout[self.layer.active_adapters[0]]
        return float(getattr(module, "p", 0))

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
    dropout = layer.lora_dropout[name]
    if type(dropout) not in (torch.nn.Dropout, torch.nn.Identity):
        return "another kind of dropout"
    if dropout.training != layer.training:
        return "its dropout is switched off"
    return None


class Use(NamedTuple):
    """One use of an adapted layer: its factors, and what is kept besides its input."""

    part: Adapted
    a_RI: Tensor
    """The adapter's first factor, in any dtype."""
    b_OR: Tensor
    """Its second."""
    inner_TR: Tensor
    """d(x) Aᵀ."""
    dropped: Tensor | None
    """What `fast_dropout.drawn` gives."""

    @classmethod
    def of(cls, part: Adapted, a_RI: Tensor, b_OR: Tensor, x_TI: Tensor, level: int) -> "Use":
        """The thin product; at level 0 the mask of dropout is kept, above it is drawn again."""
        left_TI, dropped = drawn(x_TI, part.dropout, is_kept=level == 0)
        return cls(part, a_RI, b_OR, left_TI @ a_RI.to(x_TI.dtype).t(), dropped)

    def output(self, x_TI: Tensor, onto_TO: Tensor | None = None) -> Tensor:
        """The layer's, [T, O], added to `onto`; each time the same bits."""
        second_RO = self.b_OR.to(x_TI.dtype).t() * self.part.scaling
        if onto_TO is None:
            y_TO = self.inner_TR @ second_RO
        else:
            y_TO = torch.addmm(onto_TO, self.inner_TR, second_RO)
        return y_TO.addmm_(x_TI, self.part.weight(x_TI.dtype).t())

    def drop(self, like_TI: Tensor) -> Drop | None:
        """What was dropped of the input; `like` has its shape and dtype."""
        return again(like_TI, self.part.dropout, self.dropped)

    def by_inner(self, by_y_TO: Tensor) -> Tensor:
        """Gradient of d(x) Aᵀ [T, R]."""
        return (by_y_TO @ self.b_OR.to(by_y_TO.dtype)).mul_(self.part.scaling)

    def by_factors(
        self, by_y_TO: Tensor, by_inner_TR: Tensor, x_TI: Tensor, drop: Drop | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of A and B, in the dtype that they are trained in."""
        left_TI = drop(x_TI) if drop else x_TI
        by_a_RI = by_inner_TR.t() @ left_TI
        by_b_OR = by_y_TO.t() @ (self.inner_TR * self.part.scaling)
        return by_a_RI.to(self.a_RI.dtype), by_b_OR.to(self.b_OR.dtype)

    def by_input(
        self,
        by_y_TO: Tensor,
        by_inner_TR: Tensor,
        drop: Drop | None,
        onto_TI: Tensor | None = None,
    ) -> Tensor:
        """Gradient of x [T, I]; added to `onto` in place, where that is given."""
        a_RI = self.a_RI.to(by_y_TO.dtype)
        if drop:
            thin_TI = drop(by_inner_TR @ a_RI)
            by_x_TI = thin_TI if onto_TI is None else onto_TI.add_(thin_TI)
        elif onto_TI is None:
            by_x_TI = by_inner_TR @ a_RI
        else:
            by_x_TI = onto_TI.addmm_(by_inner_TR, a_RI)
        return by_x_TI.addmm_(by_y_TO, self.part.weight(by_y_TO.dtype))

    def gradients(
        self, by_y_TO: Tensor, x_TI: Tensor, onto_TI: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, added to `onto` in place, where that is given; of A and of B."""
        drop, by_inner_TR = self.drop(x_TI), self.by_inner(by_y_TO)
        of_factors = self.by_factors(by_y_TO, by_inner_TR, x_TI, drop)
        return self.by_input(by_y_TO, by_inner_TR, drop, onto_TI), *of_factors
