"""Dropout before an adapter: the elements that PyTorch drops, and in the backward pass the same.

Drawn from the generator that PyTorch's own dropout draws from, in its order, so a lean layer drops
what a plain one would. Legend: T tokens, I inputs. Knows nothing of layers.
"""

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Drop(NamedTuple):
    """Drops the same elements of every tensor that it is given: also of a gradient."""

    mask_TI: Tensor
    """Bool, true where an element stays."""
    scale: float
    """What those that stay are multiplied by."""

    def __call__(self, x_TI: Tensor) -> Tensor:
        """A tensor of the mask's shape, its elements dropped."""
        return torch.ops.aten.native_dropout_backward(x_TI, self.mask_TI, self.scale)


def drawn(x_TI: Tensor, probability: float, *, is_kept: bool) -> tuple[Tensor, Tensor | None]:
    """Drop elements at random.

    Returns:
        What is left, and what the same are found by again: the mask itself, or, where it is not
        kept, the state that the generator had. Nothing where nothing is ever dropped.
    """
    if not probability:
        return x_TI, None
    state = _generator(x_TI.device).get_state()
    left_TI, mask_TI = torch.native_dropout(x_TI, probability, True)
    return left_TI, mask_TI if is_kept else state


def again(like_TI: Tensor, probability: float, kept: Tensor | None) -> Drop | None:
    """What `drawn` dropped.

    Args:
        like_TI: Of the shape, dtype and device of what was dropped from.
        probability: As it was.
        kept: What `drawn` gave.
    """
    if kept is None:
        return None
    if kept.dtype != torch.bool:
        generator = _generator(like_TI.device)
        now = generator.get_state()
        generator.set_state(kept)
        kept = torch.native_dropout(like_TI, probability, True)[1]
        generator.set_state(now)
    return Drop(kept, 1 / (1 - probability))


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator
