"""Which tensor of a merged model lies where: in which file, and from which byte on.

Pure functions of names, shapes, a dtype and a shard's size; files are named and divided as
huggingface_hub does it. Knows nothing of weights.
"""

import json
import math
from dataclasses import dataclass

import torch
from huggingface_hub import split_torch_state_dict_into_shards

Shapes = dict[str, tuple[int, ...]]
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A tensor in its file."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One safetensors file."""

    name: str
    header: bytes
    """All that comes before the first tensor."""
    tensors: tuple[Placed, ...]
    num_bytes: int
    """Of the whole file."""


def plan(shapes: Shapes, dtype: torch.dtype, shard_size: str) -> list[Shard]:
    """Divide tensors over files, in their order.

    Args:
        shapes: By name.
        dtype: Of all of them.
        shard_size: The most bytes of tensors in a file (`5GB`); one larger tensor is alone in its.
    """
    empty = {n: torch.empty(shape, dtype=dtype, device="meta") for n, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=shard_size)
    return [
        _shard(name, {n: shapes[n] for n in names}, dtype)
        for name, names in split.filename_to_tensors.items()
    ]


def _shard(name: str, shapes: Shapes, dtype: torch.dtype) -> Shard:
    """A file: 8 bytes that say the header's length, the header as JSON, the tensors one by one."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for tensor, shape in shapes.items():
        begins[tensor], end = end, end + math.prod(shape) * dtype.itemsize
        offsets = [begins[tensor], end]
        described[tensor] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin where they can be mapped
    header = len(text).to_bytes(8, "little") + text
    placed = (
        Placed(name=n, shape=shape, offset=len(header) + begins[n]) for n, shape in shapes.items()
    )
    return Shard(name=name, header=header, tensors=tuple(placed), num_bytes=len(header) + end)


def index(shards: list[Shard]) -> dict[str, object]:
    """The content of model.safetensors.index.json: which tensor is in which file."""
    total = sum(shard.num_bytes - len(shard.header) for shard in shards)
    places = {placed.name: shard.name for shard in shards for placed in shard.tensors}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
