"""Attention, causal, by every backend that a machine has.

Articles of one length s fill a micro-batch, B s = T, so that all backends do the same work.
Knows nothing of how calls are timed.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from geometries import GEOMETRIES
from micro_cases import Case, backward, random, token_counts
from timing import Run, num_sets
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from pressroom.geometry import Geometry

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q [B, s, heads, d], k and v [B, s, kv heads, d] -> [B, s, heads, d], or the same less B."""


def attentions(geometry: str, *, compiled: bool) -> Iterator[Case]:
    """Forward and backward of each backend at two lengths of articles.

    FLOPs are those under the diagonal: 2 s² d a head forward, 5 s² d backward, where scores
    are computed again (Dao, FlashAttention-2, arXiv:2307.08691, section 4).
    """
    size = GEOMETRIES[geometry]
    short, tokens, _ = token_counts(geometry)
    for name, build in (COMPILED if compiled else BACKENDS).items():
        is_flash = name in ("sdpa flash", "varlen", "flash_attn")
        for length in (short, tokens):
            for way, factor, rate in (("forward", 2, 290), ("backward", 5, 215)):
                yield Case(
                    item=f"attention {name}",
                    geometry=geometry,
                    case=f"s={length}",
                    column=way,
                    unit="TFLOP/s",
                    work=factor * tokens * length * size.num_heads * size.head_dim,
                    expected=rate if is_flash else None,
                    seconds=8 if compiled else 0.1,
                    make=_case(build, size, tokens // length, length, way),
                )


def _case(
    build: Callable[..., Attend], size: Geometry, rows: int, length: int, way: str
) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        attend = build(rows, length, device)
        heads = (size.num_heads, size.num_kv_heads, size.num_kv_heads)
        sets = []
        for _ in range(num_sets(4 * rows * length * sum(heads) * size.head_dim, device)):
            inputs = [
                random(rows, length, h, size.head_dim, device=device).requires_grad_()
                for h in heads
            ]
            gradient = random(rows, length, heads[0], size.head_dim, device=device)
            sets.append((inputs, gradient))
        if way == "forward":
            return lambda number: attend(*sets[number % len(sets)][0])
        results = [(attend(*inputs), inputs, g) for inputs, g in sets]
        return backward([(r, inputs, g.view_as(r)) for r, inputs, g in results])

    return make


def _sdpa(backend: SDPBackend) -> Callable[..., Attend]:
    def build(rows: int, length: int, device: torch.device) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (t.transpose(1, 2) for t in (query, key, value))
            gqa = query.shape[2] != key.shape[2]
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
            return out.transpose(1, 2)

        return _explained(attend)

    return build


def _explained(attend: Attend) -> Attend:
    """PyTorch says why a backend refuses in warnings: they join its error."""

    def explained(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        try:
            return attend(query, key, value)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with suppress(RuntimeError):
                    attend(query, key, value)
            said = [str(w.message).partition(" (Triggered")[0] for w in caught]
            useful = [s for s in said if not s.endswith(("because:", "runtime disabled."))]
            raise RuntimeError("; ".join([str(error), *useful])) from None

    return explained


def varlen_arguments(parameters: Any, *, gqa: bool) -> dict[str, Any]:
    """How the installed `varlen_attn` is told of causality and of fewer key heads.

    Its signature changed: `is_causal` in 2.10, `window_size` since; `enable_gqa` came later.

    Args:
        parameters: Names of its parameters.
        gqa: Whether there are fewer key heads.

    Raises:
        NotImplementedError: It has no word for causal that is known here.
    """
    if "window_size" in parameters:
        found: dict[str, Any] = {"window_size": (-1, 0)}
    elif "is_causal" in parameters:
        found = {"is_causal": True}
    else:
        raise NotImplementedError(f"varlen_attn({', '.join(parameters)}) has no causal")
    return found | ({"enable_gqa": True} if gqa and "enable_gqa" in parameters else {})


def varlen_signature() -> str:
    """The installed `varlen_attn`'s parameters, or that there is none."""
    try:
        varlen = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return "varlen_attn: not in this torch"
    return f"varlen_attn({', '.join(inspect.signature(varlen).parameters)})"


def _varlen(rows: int, length: int, device: torch.device) -> Attend:
    varlen = import_module("torch.nn.attention.varlen").varlen_attn
    parameters = inspect.signature(varlen).parameters
    ends = torch.arange(0, (rows + 1) * length, length, device=device, dtype=torch.int32)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.flatten(0, 1) for t in (query, key, value))
        options = varlen_arguments(parameters, gqa=q.shape[1] != k.shape[1])
        out: Tensor = varlen(q, k, v, ends, ends, length, length, **options)
        return out

    return attend


def _flash_attn(rows: int, length: int, device: torch.device) -> Attend:
    if find_spec("flash_attn") is None:
        raise ImportError("flash_attn is not installed")
    flash = import_module("flash_attn").flash_attn_func
    return lambda query, key, value: flash(query, key, value, causal=True)


def _causal(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _flex(rows: int, length: int, device: torch.device) -> Attend:
    if device.type == "cpu":
        raise NotImplementedError("flex_attention has no backward on a CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(_causal, None, None, length, length, device=device)
    # With fullgraph, too many recompilations are an error, not slow attention without a word.
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        gqa = query.shape[2] != key.shape[2]
        out: Tensor = compiled(q, k, v, block_mask=mask, enable_gqa=gqa)
        return out.transpose(1, 2)

    return attend


BACKENDS: dict[str, Callable[..., Attend]] = {
    "sdpa flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": _sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa math": _sdpa(SDPBackend.MATH),
    "flash_attn": _flash_attn,
    "varlen": _varlen,
}
COMPILED: dict[str, Callable[..., Attend]] = {"flex": _flex}
