"""A base's weights row by row, in fp32: those that its 4-bit codes stand for, or its own.

For what never holds a whole tensor. Knows nothing of adapters or of what is written.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState

from pressroom import quantized_base
from pressroom.nn.pieces import BLOCK, REFETCH, Files, quantize
from pressroom.train_sections import DTYPES, Precision, Quantization

Rows = Callable[[int, int], torch.Tensor]
"""Rows [first, last) of a weight in fp32, in memory of their own."""

ALIGNED = BLOCK * 256
"""Weights that share a scale of scales: where these begin, a part is a tensor of its own."""
SLICE = 2**21
"""Weights of a slice: 8 MiB in fp32, which a core's caches hold at least in part."""


def slices(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a weight into ranges of rows that can be dequantized each by itself.

    >>> slices((100, 2**16))
    [(0, 32), (32, 64), (64, 96), (96, 100)]
    """
    rows, columns = shape[0], math.prod(shape[1:])
    step = ALIGNED // math.gcd(ALIGNED, columns)
    step *= max(1, SLICE // (step * columns))
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def whole(rows: Rows, shape: Sequence[int]) -> torch.Tensor:
    """All of a weight."""
    first, *others = slices(shape)
    start = rows(*first)
    tensor = torch.empty(shape, dtype=start.dtype, device=start.device)
    tensor[: first[1]] = start
    for begin, end in others:
        tensor[begin:end] = rows(begin, end)
    return tensor


class BaseRows:
    """Opens a base's tensors as they were trained on: dequantized codes, the rest as computed in.

    Args:
        folder: The base model; its codes where those were made, or a folder of codes itself.
        quantization: How its linear layers were quantized; None leaves them.
        precision: What weights are rounded to before they are quantized or computed with.
        device: Where the rows are made.
        quantized: Names of the weights that are quantized, where there are no codes on disk.
    """

    def __init__(
        self,
        folder: Path,
        quantization: Quantization | None,
        precision: Precision,
        device: torch.device,
        quantized: frozenset[str],
    ) -> None:
        codes = quantized_base.nearest(folder, quantization, precision)
        self.files = Files(codes or folder, quantized_base.MEND if codes else REFETCH)
        self._quantization, self._quantized = quantization, quantized
        self._dtype, self._device = getattr(torch, DTYPES[precision]), device

    def open(self, name: str) -> Rows:
        """A tensor's rows; weights that were quantized on loading are quantized again, at once.

        Raises:
            UserError: The tensor is missing, or its file damaged.
        """
        weight = self.files.read(name)
        if f"{name}.absmax" in self.files.file_of:
            stats = {k: v.clone() for k, v in self.files.below(f"{name}.").items()}
            return _dequantized(weight, QuantState.from_dict(stats, self._device), self._device)
        if name in self._quantized:
            assert self._quantization is not None
            codes, state = quantize(weight, self._quantization, self._dtype, self._device)
            return _dequantized(codes, state, self._device)
        return lambda a, b: weight[a:b].to(self._device, self._dtype).to(torch.float32, copy=True)


class OriginalRows:
    """Opens a base's tensors as they lie in its own files, whatever was trained on.

    Args:
        folder: The base model.
        device: Where the rows are made.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.files, self._device = Files(folder, REFETCH), device

    def open(self, name: str) -> Rows:
        """A tensor's rows.

        Raises:
            UserError: The tensor is missing, or its file damaged.
        """
        weight = self.files.read(name)
        return lambda a, b: weight[a:b].to(self._device, torch.float32, copy=True)


def _dequantized(codes: torch.Tensor, state: QuantState, device: torch.device) -> Rows:
    """What codes stand for: code times scale in fp32, bit by bit as if all were done at once."""
    columns = state.shape[1]
    packed = codes.view(torch.uint8).view(-1)
    nested = state.state2

    def rows(first: int, last: int) -> torch.Tensor:
        begin, end = first * columns, last * columns
        scales = state.absmax[begin // BLOCK : -(-end // BLOCK)]
        if nested is not None:
            of_scales = nested.absmax[begin // ALIGNED : -(-end // ALIGNED)]
            scales = bnb.functional.dequantize_blockwise(
                scales,
                QuantState(of_scales, code=nested.code, blocksize=256, dtype=torch.float32),
            )
            scales += state.offset
        part = QuantState(
            absmax=scales,
            shape=torch.Size((last - first, columns)),
            dtype=torch.float32,
            blocksize=BLOCK,
            code=state.code,
            quant_type=state.quant_type,
        )
        own = packed[begin // 2 : -(-end // 2)].to(device)
        return bnb.functional.dequantize_4bit(own.view(-1, 1), part)

    return rows
