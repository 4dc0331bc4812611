"""Selective checkpointing: which results of a decoder layer are kept, and which computed again.

Products with the base's matrices and attention are kept. Norms, SwiGLU, rotary embeddings, casts
and the adapters' second products are computed again in the backward pass. Knows nothing of recipes
or strategies.
"""

from functools import partial
from typing import Any

import bitsandbytes  # noqa: F401  its operations are torch's from now on
import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default)
_QUANTIZED = torch.ops.bitsandbytes.gemm_4bit.default  # on every device, also where it dequantizes
_ATTENTION = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
)


def keep_products(base: PreTrainedModel, r: int) -> None:
    """Have each decoder layer keep its products and attention, and compute the rest again.

    Dropout draws the same numbers again.

    Args:
        base: The base, which may have its adapters already.
        r: Rank of the adapters.
    """
    contexts = partial(create_selective_checkpoint_contexts, partial(_is_kept, r))
    base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    # Only reentrant checkpoints need a gradient of the embeddings; it costs products and memory.
    base.disable_input_require_grads()


def _is_kept(r: int, _: Any, operation: Any, *arguments: Any, **options: Any) -> bool:
    """Whether the result of an operation is kept.

    A kept byte of a product saves as much work as the product's inner dimension is long. That is
    the width of the model for the base's products and for an adapter's first, but r for its second,
    which is as wide as the base's: to keep those too would nearly double what is kept.
    """
    if operation in _PRODUCTS:
        return bool(arguments[-2].shape[-1] > r)
    if operation is _QUANTIZED or operation in _ATTENTION:
        return True
    # The package's, or a kernel's from the hub; PyTorch's varlen attention.
    return "flash_attn" in operation.namespace or operation.namespace == "torch_attn"
