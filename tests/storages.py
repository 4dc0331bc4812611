"""Bytes of the tensors that are alive in this process, and the most there were at once.

Every tensor that an operator makes is seen as it is made, and as its memory is freed. What is
mapped from a file is made by none.
"""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """Counts within its block."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operator has made: its results that are no views of what it was given."""
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage._cdata not in given | self._alive.keys():
                self._alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return made

    def _freed(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = [getattr(leaf, "_local_tensor", leaf) for leaf in tree_leaves(values)]
    return [
        tensor.untyped_storage()
        for tensor in tensors
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta
    ]
