"""Memory: what one GPU holds at its two peaks, and what a node's host memory and disk take.

A step has two moments that can be its peak: the loss, and the backward pass of a layer, which
under checkpointing is computed again for it. Bytes; GiB are for people. Knows nothing of time.
"""

from dataclasses import dataclass

from pressroom.planner.activations import (
    backward_workspace,
    kept_activations,
    loss_bytes,
    recomputed_layer,
)
from pressroom.planner.decoder_layer import DecoderLayer
from pressroom.planner.setup import Setup
from pressroom.planner.sharding import (
    Held,
    held,
    layer_bytes,
    pinned_host_bytes,
    whole,
)

GIB = 2**30
CONTEXT = 0.5 * GIB
"""The CUDA context and kernels, which torch does not count: nvidia-smi says 0.4 to 0.6."""
NCCL = 0.4 * GIB
"""NCCL's channels and buffers, which torch does not count."""
RESERVE = 1.0 * GIB
KEPT_RESERVE, TRANSIENT_RESERVE = 0.10, 0.35
"""What torch reserves above what it allocates: a GiB, a tenth of the activations that a step keeps,
a third of what comes and goes in it. Calibrated on published peaks: docs/planner.md."""
PROCESS = 3.0 * GIB
"""Host memory of a rank: libraries, CUDA's own, the data loader. Assumed."""
FULL_LOGITS = 16
"""Bytes a token and a word: logits in bf16, in fp32 twice, their logarithms and gradients."""

TRANSIENT = ("recomputed layer", "gradients of activations", "logits", "loss, in chunks")
"""Rows that come and go within a step."""

Rows = dict[str, float]
"""What takes memory -> bytes."""


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """One GPU's memory, by what takes it, at load and at the peak of a step."""

    load: Rows
    step: Rows
    moment: str
    """When a step is at its peak: `loss` or `backward`."""

    @property
    def peak(self) -> float:
        """Bytes at the higher of both."""
        return max(sum(self.load.values()), sum(self.step.values()))


def gpu_memory(setup: Setup) -> GpuMemory:
    """What one GPU holds."""
    parts = held(setup)
    moments = {"backward": _backward(setup, parts), "loss": _loss(setup, parts)}
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return GpuMemory(load=_at_load(setup), step=moments[moment], moment=moment)


def torch_bytes(rows: Rows) -> float:
    """What torch counts as reserved: all but what lies outside its allocator."""
    return sum(rows.values()) - rows["CUDA context, NCCL"]


def _static(setup: Setup, parts: Held) -> Rows:
    return {
        "4-bit weights": parts.codes,
        "scales": parts.scales,
        "16-bit weights": parts.linears,
        "embeddings, norms, head": parts.other,
        "adapters": parts.adapters,
        "gradients": parts.gradients,
        "optimizer states": parts.optimizer,
        "gathered layers": parts.gathered,
        "gathered embeddings, head": parts.gathered_other,
        "communication buffers": parts.buffers,
        "weights dequantized once": setup.cached,
    }


def _layer(setup: Setup) -> DecoderLayer:
    return DecoderLayer(
        *(setup.geometry, setup.lora, setup.memory, setup.tokens),
        *(setup.attention, setup.quantization is not None, setup.save),
    )


def _backward(setup: Setup, parts: Held) -> Rows:
    layer = _layer(setup)
    workspace = backward_workspace(layer)
    rows = _static(setup, parts) | {
        "activations kept": kept_activations(layer),
        "recomputed layer": recomputed_layer(layer),
        "gradients of activations": workspace.gradients,
        "dequantized weights": 0 if setup.is_cached else workspace.weight,
    }
    return _on_the_card(setup, rows)


def _loss(setup: Setup, parts: Held) -> Rows:
    rows = _static(setup, parts) | {"activations kept": kept_activations(_layer(setup))}
    if setup.full_logits:
        rows["logits"] = FULL_LOGITS * setup.geometry.vocab_size * setup.tokens
    else:
        rows["loss, in chunks"] = loss_bytes(setup.geometry, setup.memory, setup.tokens).peak
    return _on_the_card(setup, rows)


def _at_load(setup: Setup) -> Rows:
    """A rank that loads on its GPU has the whole base there, and divides it then.

    But ZeRO-3 divides what is not quantized while it loads. Else each layer is read and divided
    before the next, and only embeddings and head are whole until training begins.
    """
    total = whole(setup)
    largest = max(out * into for out, into in setup.geometry.linear_shapes.values())
    zero3 = "zero3" in setup.strategy and setup.quantization is None
    share = setup.world_size if zero3 else 1
    rows = {
        "4-bit weights": total.codes,
        "scales": total.scales,
        "16-bit weights": total.linears / share,
        "embeddings, norms, head": total.other / share,
        "adapters": total.adapters,
        "weights being quantized": 2 * largest if setup.quantization else 0,
    }
    if not setup.loads_on_gpu:
        parts = held(setup)
        rows |= {
            "4-bit weights": parts.codes,
            "16-bit weights": parts.linears,
            "adapters": parts.adapters,
            "layer being divided": layer_bytes(setup, total),
        }
    return _on_the_card(setup, rows)


def _on_the_card(setup: Setup, rows: Rows) -> Rows:
    transient = sum(rows.get(name, 0) for name in TRANSIENT)
    kept = rows.get("activations kept", 0)
    return rows | {
        "CUDA context, NCCL": CONTEXT + (NCCL if setup.world_size > 1 else 0),
        "reserve": RESERVE + KEPT_RESERVE * kept + TRANSIENT_RESERVE * transient,
    }


def host_bytes(setup: Setup) -> float:
    """Host memory of a node in training: its ranks, and what they offload."""
    return setup.gpus_per_node * (PROCESS + pinned_host_bytes(setup))


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run writes or needs."""

    base: float
    data: float
    """Packed rows, where they are known: ids and labels, four bytes each."""
    checkpoints: float
    merged: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.base + self.data + self.checkpoints + self.merged


def disk(setup: Setup, num_kept: int, num_rows: int = 0) -> Disk:
    """Disk space: the base in 16 bits, checkpoints (one more while it is written), the merge."""
    total = whole(setup)
    one = total.adapters + total.optimizer
    bf16 = 2.0 * setup.geometry.num_weights
    data = 8.0 * num_rows * setup.sequence_length
    return Disk(base=bf16, data=data, checkpoints=(num_kept + 1) * one, merged=bf16)
