"""Where the articles of a micro-batch lie, in the words of each way to attend.

Made once a micro-batch, on the host, for all layers: nobody asks the GPU. Knows nothing of models.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor
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
    return create_block_mask(sees, None, None, size, size, device=numbers.device, _compile=compiled)
