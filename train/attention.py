"""Attention among the articles of packed rows, by the fastest way that this machine has.

A micro-batch is told once where its articles begin, on the host, and every layer is told by the
same object; so no layer makes a mask over all tokens, and nobody asks the GPU. Where nobody says
where articles begin (evaluation of single articles, generation), attention is transformers' own.
Legend: T tokens of a micro-batch, H heads, K key heads, W width of a head. Knows nothing of
adapters or layers.
"""

import inspect
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from pressroom.console import UserError

Tensor = torch.Tensor
PREFIX = "packed_"
"""Before a backend's name, where transformers knows it: what it finds `flash` in is its own."""
RUN = 128
"""Tokens from which on an article has a call of its own under `blocks`; shorter ones share one, and
its small mask: a call costs more than they do."""


class Articles:
    """Where the articles of a micro-batch lie.

    Args:
        lengths: Of each, in their order.
        starts: [N + 1] int32, where each begins, and the end; on the device.
        numbers: [T], the number of each token's article; on the device.
        backend: Which will use it.
    """

    def __init__(
        self, lengths: Sequence[int], starts: Tensor, numbers: Tensor, backend: str
    ) -> None:
        self.lengths, self.starts = lengths, starts
        self.longest = max(lengths)
        self.runs = runs(lengths)
        self.masks: list[Tensor | None] = []
        self.block_mask: Any = None
        if backend == "blocks":
            self.masks = _masks(self.runs, numbers)
        elif backend == "flex":
            self.block_mask = _block_mask(numbers)


class Run(NamedTuple):
    """Consecutive articles that share a call."""

    size: int
    """Tokens."""
    is_one: bool
    """Whether they are a single article, which needs no mask."""


def runs(lengths: Sequence[int]) -> list[Run]:
    """Divide articles into calls: a long one alone, short ones together.

    >>> runs([200, 30, 40, 90, 50, 300])
    [Run(size=200, is_one=True), Run(size=160, is_one=False), Run(size=50, is_one=True), \
Run(size=300, is_one=True)]
    """
    found: list[Run] = []
    is_open = False
    for length in lengths:
        if is_open and length < RUN:
            found[-1] = Run(found[-1].size + length, False)
        else:
            found.append(Run(length, True))
        is_open = found[-1].size < RUN
    return found


def _masks(parts: list[Run], numbers: Tensor) -> list[Tensor | None]:
    """Of each run with several articles: [1, 1, size, size], true where a token is seen."""
    pieces = numbers.split([part.size for part in parts])
    return [
        None if part.is_one else (piece[:, None] == piece[None, :]).tril_()[None, None]
        for part, piece in zip(parts, pieces, strict=True)
    ]


def _block_mask(numbers: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query >= key) & (numbers[query] == numbers[key])

    size = len(numbers)
    compiled = numbers.is_cuda  # or it would be made whole first
    return create_block_mask(
        sees, None, None, size, size, device=numbers.device, _compile=compiled
    )


def _varlen(
    q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float
) -> Tensor:
    """FlashAttention-2 as it comes with PyTorch."""
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = articles.starts, articles.longest
    # How one asks for causality, scale and shared key heads changed from version to version.
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"enable_gqa": True, "scale": scale}
    options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    options = {name: value for name, value in options.items() if name in known}
    varlen: Any = varlen_attn
    return varlen(q_THW, k_TKW, v_TKW, starts, starts, longest, longest, **options)


def _fa2(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float) -> Tensor:
    """FlashAttention from the package of that name."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    starts, longest = articles.starts, articles.longest
    return flash_attn_varlen_func(
        *(q_THW, k_TKW, v_TKW, starts, starts, longest, longest),
        causal=True,
        softmax_scale=scale,
    )


_compiled_flex: list[Any] = []


def _flex(q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float) -> Tensor:
    """FlexAttention, compiled for a GPU; uncompiled it holds all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    if not _compiled_flex:
        _compiled_flex.append(torch.compile(flex_attention))
    attention = _compiled_flex[0] if q_THW.is_cuda else flex_attention
    heads = (t.transpose(0, 1)[None] for t in (q_THW, k_TKW, v_TKW))
    is_shared = q_THW.shape[1] != k_TKW.shape[1]
    out = attention(*heads, block_mask=articles.block_mask, scale=scale, enable_gqa=is_shared)
    return out[0].transpose(0, 1)


def _blocks(
    q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, articles: Articles, scale: float
) -> Tensor:
    """PyTorch's SDPA, article by article, or run by run of short ones."""
    shared = q_THW.shape[1] // k_TKW.shape[1]
    if shared > 1:  # with a mask, no fused kernel takes fewer key heads
        k_TKW, v_TKW = (t.repeat_interleave(shared, 1) for t in (k_TKW, v_TKW))
    sizes = [run.size for run in articles.runs]
    parts = (t.transpose(0, 1)[None].split(sizes, 2) for t in (q_THW, k_TKW, v_TKW))
    out = [
        scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        for q, k, v, mask in zip(*parts, articles.masks, strict=True)
    ]
    return torch.cat([piece[0].transpose(0, 1) for piece in out])


Attend = Callable[[Tensor, Tensor, Tensor, Articles, float], Tensor]
BACKENDS: dict[str, Attend] = {
    "varlen": _varlen,
    "fa2": _fa2,
    "flex": _flex,
    "blocks": _blocks,
}
"""By name, the best first: q [T, H, W], k, v [T, K, W], articles, scale -> [T, H, W]."""


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
