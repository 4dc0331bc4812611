"""Attention among the articles of packed rows, by the fastest way that this machine has.

A micro-batch is told once where its articles begin, and every layer is told by the same object; so
no layer makes a mask over all tokens. Where nobody says where articles begin (evaluation of single
articles, generation), attention is transformers' own. Legend: T tokens of a micro-batch, H heads,
K key heads, W width of a head. Knows nothing of adapters or layers.
"""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from pressroom.console import UserError
from train.articles import Articles
from train.attention_backends import BACKENDS, Attend

Tensor = torch.Tensor
PREFIX = "packed_"
"""Before a backend's name, where transformers knows it: what it finds `flash` in is its own."""


def missing(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot be used here, or None where it can."""
    if backend in ("blocks", "dense"):
        return None
    if device.type != "cuda":
        return "it needs a GPU"
    if backend == "flex":
        return None if find_spec("triton") else "triton is not installed"
    if dtype == torch.float32:
        return "it computes in bf16 and fp16 only"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return f"it needs an Ampere or newer, not a {torch.cuda.get_device_name(device)}"
    module = "torch.nn.attention.varlen" if backend == "varlen" else "flash_attn"
    return None if find_spec(module) else f"{module} is not installed"


def choose(asked: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that is asked for, or, for `auto`, the best that is here.

    Raises:
        UserError: What is asked for is not here.
    """
    if asked == "auto":
        return next(name for name in BACKENDS if missing(name, device, dtype) is None)
    if why := missing(asked, device, dtype):
        here = [name for name in BACKENDS if missing(name, device, dtype) is None]
        raise UserError(f"speed.attention: {asked}: {why}; here there is {', '.join(here)}")
    return asked


def attach(base: PreTrainedModel, backend: str) -> None:
    """Have a model attend by a backend wherever it is told its articles; `dense`: by a mask.

    Args:
        base: Without adapters around it.
        backend: A name in `BACKENDS`, or `dense`.
    """
    base.set_attn_implementation("sdpa" if backend == "dense" else PREFIX + backend)


def backend_of(implementation: str) -> str | None:
    """The backend behind a name that transformers knows, or None where it is not one of ours."""
    name = implementation.removeprefix(PREFIX)
    return name if implementation != name and name in BACKENDS else None


def _register(name: str, attend: Attend) -> None:
    def attention(
        module: torch.nn.Module,
        query_1HTW: Tensor,
        key_1KTW: Tensor,
        value_1KTW: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        articles: Articles | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        q, k, v = query_1HTW, key_1KTW, value_1KTW
        if articles is None:
            return sdpa_attention_forward(
                module, q, k, v, attention_mask, scaling=scaling, **options
            )
        q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))
        return attend(q, k, v, articles, scaling)[None], None

    AttentionInterface.register(PREFIX + name, attention)
    AttentionMaskInterface.register(PREFIX + name, sdpa_mask)


for _name, _attend in BACKENDS.items():
    _register(_name, _attend)
