"""The arithmetic of a merge, rows by rows: base + scale · B·A in fp32, rounded once.

Knows nothing of where the rows go.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from generate.merge_adapter import Adapter, Factors
from pressroom.nn.base_rows import Rows


class Base(Protocol):
    """What opens a base's tensors."""

    def open(self, name: str) -> Rows:
        """A tensor's rows, in fp32."""
        ...


@dataclass(frozen=True)
class Merged:
    """The tensors of a merged model, as they are asked for."""

    base: Base
    adapter: Adapter
    dtype: torch.dtype
    device: torch.device

    def rows(self, name: str) -> Rows:
        """Rows of one: base + scale · B·A in fp32, rounded once."""
        base = self.base.open(name)
        factors = self.adapter.factors(name, self.device)
        return lambda first, last: added(base(first, last), factors, first, last).to(self.dtype)


def added(base: torch.Tensor, factors: Factors | None, first: int, last: int) -> torch.Tensor:
    """Add scale · B·A to rows [first, last) of a weight, in place."""
    if factors is None:
        return base
    return base.addmm_(factors.b_OR[first:last], factors.a_RI, alpha=factors.scale)
