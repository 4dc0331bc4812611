"""What lies between the matrix products, SwiGLU and RMSNorm: as it stands, and compiled.

Knows nothing of how calls are timed.
"""

from collections.abc import Callable, Iterator

import torch
from geometries import GEOMETRIES
from micro_cases import Case, backward, random, token_counts
from timing import Run, num_sets
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Llama's norm, [tokens, d]; its weight is frozen."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    return weight * wide.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Llama's activation, [tokens, d_ff]."""
    return functional.silu(gate) * up


def elementwise(geometry: str, *, compiled: bool) -> Iterator[Case]:
    """Forward and backward of what lies between the products."""
    size, tokens = GEOMETRIES[geometry], token_counts(geometry)[1]
    # Function, width, whether each argument is trained through, tensors moved: forward, backward.
    table = (
        ("SwiGLU", swiglu, size.intermediate_size, (True, True), 3, 5),
        ("RMSNorm", rms_norm, size.hidden_size, (True, False), 2, 3),
    )
    for name, function, width, trained, *moved in table:
        for way, tensors in zip(("forward", "backward"), moved, strict=True):
            yield Case(
                item=f"{name} {'compiled' if compiled else 'eager'}",
                geometry=geometry,
                case=f"{tokens}x{width}",
                column=way,
                unit="GB/s",
                work=2 * tensors * tokens * width,
                expected=3600 if compiled else None,
                seconds=8 if compiled else 0.1,
                make=_elementwise(function, (tokens, width), trained, way, compiled),
            )


def _elementwise(
    function: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, int],
    trained: tuple[bool, bool],
    way: str,
    compiled: bool,
) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        called = torch.compile(function, dynamic=False, fullgraph=True) if compiled else function
        sets = []
        for _ in range(num_sets(6 * shape[0] * shape[1], device)):
            inputs = [
                random(*(shape if wanted else shape[1:]), device=device).requires_grad_(wanted)
                for wanted in trained
            ]
            sets.append((inputs, random(*shape, device=device)))
        if way == "forward":
            return lambda number: called(*sets[number % len(sets)][0])
        return backward([(called(*inputs), inputs, g) for inputs, g in sets])

    return make
