"""The loss: NLL of the trained tokens, added up, computed where the model's forward ends.

The output head is frozen, so the gradient that the loss has to give is that of its input alone;
it is made in the forward pass, a piece of the tokens at a time, while their logits are there. So
no logits are kept, none are computed twice, and the whole of them never exists. Legend: T tokens
of a micro-batch, N of them trained, D hidden size, V vocabulary. Knows nothing of steps.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

_CHUNK_TOKENS = 1024
"""Whose logits exist at a time: 0.26 GB at a vocabulary of 32,000."""

Gathered = Callable[[torch.nn.Parameter], AbstractContextManager[None]]
"""Makes a parameter whole that ZeRO-3 has divided."""


class _HeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        scale: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        gradient_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_ND), _CHUNK_TOKENS):
            part = slice(start, start + _CHUNK_TOKENS)
            targets = targets_N[part, None]
            logits = hidden_ND[part].to(weight_VD.dtype) @ weight_VD.T
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            total -= log_p.gather(-1, targets).sum()
            if gradient_ND is None:
                continue
            # Of NLL by its logits: p, less one at the target. Scaled before it is rounded.
            by_logits = log_p.exp_()
            by_logits.scatter_add_(-1, targets, torch.full_like(targets, -1, dtype=torch.float32))
            torch.mul(by_logits, scale, out=logits)
            gradient_ND[part] = logits @ weight_VD
            del logits, log_p, by_logits  # or the next piece's would be made beside them
        ctx.save_for_backward(gradient_ND)
        return total * scale

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * upstream[0].to(gradient_ND.dtype), None, None, None


def score_in_forward(model: PreTrainedModel, gathered: Gathered) -> None:
    """Have `model(..., trained=, targets=, scale=)` return the scaled sum of NLL as its `loss`.

    Inside the forward, for there the strategies have the head's weight whole. Without `targets`
    the forward stays what it was.

    Args:
        model: A causal language model without adapters around it.
        gathered: Makes the head's weight whole under ZeRO-3.
    """
    plain = model.forward

    @functools.wraps(type(model).forward)  # generation and the Trainer read its signature
    def forward(
        *arguments: Any,
        trained: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        **keywords: Any,
    ) -> Any:
        if trained is None or targets is None:
            return plain(*arguments, **keywords)
        hidden_TD = model.base_model(*arguments, **keywords).last_hidden_state[0]
        hidden_ND = hidden_TD.index_select(0, trained)
        scale = hidden_ND.new_ones((), dtype=torch.float32) if scale is None else scale
        weight = model.get_output_embeddings().weight
        with gathered(weight):
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            return CausalLMOutput(loss=_HeadNLL.apply(hidden_ND, whole, targets, scale))

    model.forward = forward
