"""What is measured: matrix products, NF4, copies and the thin products of adapters.

Each case says how much work one call is, and makes its inputs, random ones, when its turn comes:
a GPU multiplies zeros faster. Knows nothing of how calls are timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from bitsandbytes import functional as bnb
from geometries import GEOMETRIES
from timing import Run, num_sets
from torch import Tensor

from pressroom.geometry import nf4_bytes

BF16 = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Case:
    """One figure."""

    item: str
    geometry: str
    """Which model's shapes; `any` where they do not matter."""
    case: str
    column: str
    """What tells apart the figures of one line of the table."""
    unit: Literal["TFLOP/s", "GB/s"]
    work: float
    """FLOPs, or the fewest bytes to read and write, of one call."""
    expected: float | None = None
    """What an H200 was predicted to reach, in `unit`."""
    seconds: float = 0.1
    """What it may cost, compilation included."""
    make: Callable[[torch.device], Run]


def token_counts(geometry: str) -> tuple[int, int, int]:
    """Tokens of a micro-batch: short, the usual, long."""
    return (64, 128, 256) if geometry == "tiny" else (2048, 8192, 16384)


def random(*shape: int, device: torch.device) -> Tensor:
    """A bf16 tensor of normal numbers."""
    return torch.randn(*shape, device=device, dtype=BF16)


def gemms(geometry: str) -> Iterator[Case]:
    """The frozen weights' products: forward x Wᵀ, and g W, the gradient of activations."""
    shapes = GEOMETRIES[geometry].linear_shapes
    for shape in dict.fromkeys(shapes.values()):
        names = "/".join(n.removesuffix("_proj") for n, s in shapes.items() if s == shape)
        for way in ("forward", "backward"):
            for tokens in token_counts(geometry):
                yield Case(
                    item=f"gemm {way}",
                    geometry=geometry,
                    case=f"{names} {shape[0]}x{shape[1]}",
                    column=str(tokens),
                    unit="TFLOP/s",
                    work=2 * tokens * shape[0] * shape[1],
                    expected=720,
                    seconds=0.3,  # long enough to meet the card's power limit
                    make=_gemm(tokens, *shape, transposed=way == "forward"),
                )


def _gemm(tokens: int, out: int, into: int, *, transposed: bool) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        read, written = (into, out) if transposed else (out, into)
        count = num_sets(2 * (out * into + tokens * (out + into)), device)
        sets = []
        for _ in range(count):
            weight = random(out, into, device=device)
            sets.append(
                (
                    random(tokens, read, device=device),
                    weight.t() if transposed else weight,
                    torch.empty(tokens, written, device=device, dtype=BF16),
                )
            )

        def run(number: int) -> None:
            left, right, result = sets[number % count]
            torch.mm(left, right, out=result)

        return run

    return make


def dequantizations(geometry: str) -> Iterator[Case]:
    """NF4 to bf16 by bitsandbytes, with the double quantization of the recipes."""
    for out, into in dict.fromkeys(GEOMETRIES[geometry].linear_shapes.values()):
        work = nf4_bytes(out * into, double_quant=True) + 2 * out * into

        def make(device: torch.device, out: int = out, into: int = into, work: int = work) -> Run:
            sets = [
                bnb.quantize_4bit(
                    random(out, into, device=device),
                    quant_type="nf4",
                    compress_statistics=True,
                    quant_storage=BF16,
                )
                for _ in range(num_sets(work, device))
            ]
            kept: list[Tensor | None] = [None] * len(sets)

            def run(number: int) -> None:
                slot = number % len(sets)
                kept[slot] = bnb.dequantize_4bit(*sets[slot])  # kept: else written to one place

            return run

        yield Case(
            item="nf4 dequantize",
            geometry=geometry,
            case=f"{out}x{into}",
            column="",
            unit="GB/s",
            work=work,
            expected=3000,
            make=make,
        )


def copies(megabytes: int) -> Iterator[Case]:
    """Device to device, counting bytes read and written; pinned host memory to device."""

    def make(host: bool) -> Callable[[torch.device], Run]:
        def make(device: torch.device) -> Run:
            target = random(megabytes * 500_000, device=device)
            source = torch.randn_like(target)
            if host:
                source = source.cpu()
                source = source.pin_memory() if device.type == "cuda" else source
            return lambda number: target.copy_(source, non_blocking=True)

        return make

    for item, host in (("copy on the device", False), ("copy host to device", True)):
        yield Case(
            item=item,
            geometry="any",
            case=f"{megabytes} MB",
            column="",
            unit="GB/s",
            work=megabytes * 1e6 * (1 if host else 2),
            expected=None if host else 4300,
            make=make(host),
        )


def adapters(geometry: str) -> Iterator[Case]:
    """The thin products of LoRA on gate_proj: x Aᵀ, h Bᵀ, and gᵀ x, the gradient of A."""
    out, into = GEOMETRIES[geometry].linear_shapes["gate_proj"]
    tokens = token_counts(geometry)[1]
    for rank in (16, 64):
        shapes = {
            "x A": (tokens, into, rank),
            "h B": (tokens, rank, out),
            "gradient of A": (rank, tokens, into),
        }
        for column, (rows, inner, columns) in shapes.items():
            work = 2 * (rows * inner + inner * columns + rows * columns)

            def make(
                device: torch.device,
                size: tuple[int, int, int] = (rows, inner, columns),
                work: int = work,
            ) -> Run:
                rows, inner, columns = size
                sets = [
                    (random(rows, inner, device=device), random(inner, columns, device=device))
                    for _ in range(num_sets(work, device))
                ]
                return lambda number: torch.mm(*sets[number % len(sets)])

            yield Case(
                item=f"adapter r={rank}",
                geometry=geometry,
                case=f"gate_proj {tokens} tokens",
                column=column,
                unit="GB/s",
                work=work,
                expected=3000,
                make=make,
            )


def backward(sets: list[tuple[Tensor, list[Tensor], Tensor]]) -> Run:
    """The backward pass alone, again and again on kept graphs.

    Args:
        sets: Result, inputs and the result's gradient, to rotate among.
    """

    def run(number: int) -> None:
        result, inputs, gradient = sets[number % len(sets)]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        torch.autograd.grad(result, wanted, gradient, retain_graph=True)

    return run
