"""What a strategy divides over the GPUs, and what it gathers, holds and sends to do so.

Bytes of one GPU, from a set-up alone; the libraries' own buffers are read from their sources.
Knows nothing of activations or time.
"""

from dataclasses import dataclass

from pressroom.planner.setup import Setup
from pressroom.planner.weights import DTYPE_BYTES, Weights, adapter_weights, quantized_linear
from pressroom.planner.weights import weights as count_weights
from pressroom.train_sections import DTYPES

ZERO3_LIVE_ELEMENTS = 10**9
"""Elements that ZeRO-3 keeps gathered rather than gather them again.
Source: deepspeed.runtime.zero.config, stage3_max_live_parameters."""
ZERO3_PERSISTENT_ELEMENTS = 10**5
"""Parameters up to this size are never divided. Source: same, param_persistence_threshold."""
STAGED_LAYERS_FSDP1 = 6
"""Layers in flight from host memory under FSDP1 with offload, where the host runs ahead of the
copies. Calibrated: docs/planner.md, the peaks with offload of fsdp_qlora."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes that one GPU holds all the time, beside activations."""

    codes: float
    scales: float
    """Buffers of the quantization state, no parameters: nobody divides them."""
    linears: float
    other: float
    adapters: float
    gradients: float
    optimizer: float
    gathered: float
    """Layers that are whole for the moment."""
    gathered_other: float
    """Embeddings, norms and head, whole from the forward to the end of the backward pass."""
    buffers: float
    """For communication."""

    @property
    def base(self) -> float:
        """The frozen model, this GPU's part of it."""
        return self.codes + self.scales + self.linears + self.other


def whole(setup: Setup) -> Weights:
    """Bytes of the model and its adapters, undivided."""
    counted = count_weights(setup.geometry, setup.quantization, setup.lora, setup.memory)
    return counted.in_dtype(setup.adapter_bytes)


def held(setup: Setup) -> Held:
    """What one GPU holds under the set-up's strategy."""
    total, ranks = whole(setup), setup.world_size
    base_ranks = ranks if setup.shards_base else 1
    states = 0 if setup.paged_optimizer else total.optimizer
    if setup.strategy == "zero2":
        states += total.adapters  # its own fp32 copy of the partition that it updates
    on_gpu = 0 if setup.offloads else 1
    return Held(
        codes=on_gpu * total.codes / base_ranks,
        scales=total.scales,
        linears=on_gpu * total.linears / base_ranks,
        other=on_gpu * total.other / base_ranks,
        adapters=_adapters(setup, total, on_gpu),
        gradients=_gradients(setup, total),
        optimizer=on_gpu * states / (ranks if setup.shards_optimizer else 1),
        gathered=_gathered(setup, total),
        gathered_other=total.other if _gathers(setup) and "fsdp" in setup.strategy else 0,
        buffers=_buffers(setup, total),
    )


def _gathers(setup: Setup) -> bool:
    """Whether a layer is not whole on this GPU until it is needed."""
    return setup.shards_base and (setup.world_size > 1 or setup.offloads)


def _adapters(setup: Setup, total: Weights, on_gpu: int) -> float:
    if setup.strategy in ("ddp", "zero2"):
        return total.adapters
    divided = on_gpu * total.adapters / setup.world_size
    if "zero3" not in setup.strategy:
        return divided
    lora, layers = setup.lora, setup.geometry.num_layers
    matrices = [lora.r * n for shape in adapted_shapes(setup) for n in shape]
    small = layers * sum(n for n in matrices if n <= ZERO3_PERSISTENT_ELEMENTS)
    return divided + setup.adapter_bytes * small


def adapted_shapes(setup: Setup) -> list[tuple[int, int]]:
    """(out, in) of the linears of a layer that have an adapter."""
    shapes, targets = setup.geometry.linear_shapes, setup.lora.target_modules
    return [shapes[n] for n in (shapes if isinstance(targets, str) else targets)]


def _gradients(setup: Setup, total: Weights) -> float:
    if setup.strategy == "ddp":
        return total.gradients
    if "fsdp" in setup.strategy and setup.accumulation > 1 and setup.fsdp_version == 2:
        return total.gradients  # accelerate divides them at the last micro-step only
    return 0 if setup.offloads else total.gradients / setup.world_size


def layer_bytes(setup: Setup, total: Weights) -> float:
    """What is gathered of one decoder layer: codes or weights, norms, adapters."""
    geometry = setup.geometry
    norms = 2 * geometry.hidden_size * DTYPE_BYTES[DTYPES[setup.memory.precision]]
    adapters = setup.adapter_bytes * adapter_weights(geometry, setup.lora)
    return (total.codes + total.linears + adapters) / geometry.num_layers + norms


def _gathered(setup: Setup, total: Weights) -> float:
    if not _gathers(setup):
        return 0
    layer = layer_bytes(setup, total)
    if "zero3" in setup.strategy:
        element = 2 if setup.quantization is None else DTYPE_BYTES[setup.quantization.storage_dtype]
        everything = total.codes + total.linears + total.other
        return min(everything, ZERO3_LIVE_ELEMENTS * element)
    if setup.fsdp_version == 1:
        return layer * (2 + (STAGED_LAYERS_FSDP1 if setup.offloads else 0))
    # The layer at work, the next one as it arrives and as it is copied out of that buffer.
    return layer * 3 + (2 * layer / setup.world_size if setup.offloads else 0)


def _buffers(setup: Setup, total: Weights) -> float:
    if setup.world_size == 1:
        return 0
    if setup.strategy == "ddp":
        return total.gradients  # DDP reduces copies, in buckets
    if "zero" in setup.strategy:
        return total.gradients  # one bucket, cut to the adapters' size by train/trainer.py
    return 2 * total.gradients / setup.geometry.num_layers


def pinned_host_bytes(setup: Setup) -> float:
    """Host memory of one rank's offloaded parameters and moments, page-locked.

    PyTorch rounds each page-locked tensor up to a power of two.
    """
    if not setup.offloads:
        return 0
    total, geometry, ranks = whole(setup), setup.geometry, setup.world_size
    if setup.fsdp_version == 1:  # a layer is one flat parameter, and a gradient beside it
        layer = _power_of_two(layer_bytes(setup, total) / ranks)
        return 2 * (geometry.num_layers * layer + _power_of_two(total.other / ranks))
    tensors = [_power_of_two(size / ranks) for size in _linear_bytes(setup)]
    other = total.other / ranks
    trained = (total.adapters + total.gradients + total.optimizer) / ranks
    return geometry.num_layers * sum(tensors) + other + trained


def _linear_bytes(setup: Setup) -> list[int]:
    shapes, quantization = setup.geometry.linear_shapes.values(), setup.quantization
    if quantization is None:
        element = DTYPE_BYTES[DTYPES[setup.memory.precision]]
        return [element * out * into for out, into in shapes]
    return [quantized_linear(out, into, quantization).codes for out, into in shapes]


def _power_of_two(size: float) -> int:
    return 1 << max(int(size) - 1, 0).bit_length()
