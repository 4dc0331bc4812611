"""Seconds: what a step, a load and a save take, from rates of the GPU and its links.

A model, not a measurement: a datasheet's rate times the share of it that such work was seen to
reach, each constant with its source. Knows nothing of recipes' files or pictures.
"""

from dataclasses import dataclass

from pressroom.planner.flops import REMADE, executed
from pressroom.planner.setup import Setup
from pressroom.planner.sharding import adapted_shapes, layer_bytes, whole

GEMM = 0.73
"""Of the datasheet's rate, in large products. Source: 720 of 989 expected on Hopper."""
BANDWIDTH = 0.72
"""Of the datasheet's bandwidth, in elementwise kernels."""
DEQUANTIZING = 0.62
"""Of the bandwidth, in bitsandbytes' dequantization."""
ATTENTION = {"flash": (0.40, 0.30), "sdpa": (0.15, 0.10), "eager": (0.05, 0.05)}
"""Of the datasheet's rate, forward and backward: FlashAttention-2 on Hopper; a dense mask falls
back to the memory-efficient kernel."""
LINK = 0.75
"""Of a link's rate in large collectives."""
HOP_SECONDS = 8e-6
"""Of one hop in a ring of ranks: assumed."""
LAUNCH_SECONDS = 1.0e-3
"""To launch the kernels of one decoder layer, one way: a hundred, from Python."""
LEAN_LAUNCH, LEAN_ELEMENTWISE = 0.7, 0.3
"""What lean layers leave of launching and of elementwise traffic: 183 operations of 253, each
elementwise one a single pass over memory. Counted on their code, not measured."""
STORAGE_BYTES_PER_SECOND = 1e9
"""Of a node's file system: assumed."""
QUANTIZING_BYTES_PER_SECOND = 5e9
"""bf16 weights to NF4 on a GPU: assumed."""
START_SECONDS = 40.0
"""Imports, rendezvous, the CUDA context: assumed."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step, by what takes them."""

    products: float
    attention: float
    dequantization: float
    adapters: float
    elementwise: float
    launching: float
    """What the GPU waits for the host."""
    communication: float
    """What is not hidden behind computing."""
    optimizer: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(vars(self).values()))


def step_time(setup: Setup) -> StepTime:
    """Seconds of one optimizer step: all its micro-steps on one rank, and the update."""
    geometry, gpu, tokens = setup.geometry, setup.gpu, setup.tokens
    flash = setup.attention == "flash"
    attended = setup.sequence_length / 2 if flash else tokens
    flops = executed(geometry, setup.lora, setup.memory, tokens, attended, setup.save)
    rate, bandwidth = gpu.tflops * 1e12, gpu.gb_per_second * 1e9 * BANDWIDTH
    passes = 2 + (setup.memory.activation_checkpointing != "none")
    forward, backward = ATTENTION[setup.attention]
    again = setup.memory.activation_checkpointing == "full"
    score = flops.attention / (7 + 2 * again)  # of one of its products
    layers = geometry.num_layers
    parts = {
        "products": (flops.linears + flops.head) / (rate * GEMM),
        "attention": score * (2 * (1 + again) / forward + 5 / backward) / rate,
        "dequantization": _dequantization(setup),
        "adapters": passes * layers * tokens * _adapter_traffic(setup) / bandwidth,
        "elementwise": passes * layers * tokens * _elementwise_traffic(setup) / bandwidth,
    }
    computing = sum(parts.values())
    launch = LAUNCH_SECONDS * (1 if setup.save == "plain" else LEAN_LAUNCH)
    launching = max(passes * layers * launch - computing, 0)
    gathering = max(_gather_seconds(setup) - computing - launching, 0)
    reducing = max(_reduce_seconds(setup) - (computing + launching) / 2, 0)
    micro = setup.accumulation
    return StepTime(
        **{name: micro * seconds for name, seconds in parts.items()},
        launching=micro * launching,
        communication=micro * gathering + reducing,
        optimizer=_optimizer_seconds(setup),
    )


def _dequantization(setup: Setup) -> float:
    if setup.quantization is None or setup.is_cached:
        return 0
    geometry, shapes = setup.geometry, setup.geometry.linear_shapes
    passes = 2 + (setup.memory.activation_checkpointing == "full")
    remade = sum(shapes[name][0] * shapes[name][1] for name in REMADE[setup.save])
    weights = passes * geometry.num_linear_weights + geometry.num_layers * remade
    return weights * (0.5 + 2) / (setup.gpu.gb_per_second * 1e9 * DEQUANTIZING)


def _adapter_traffic(setup: Setup) -> float:
    """Bytes a token of a layer: reading the input, and the product's way into the output.

    Source: PEFT's unfused forward: about 2 in + 16 out a linear. In a lean layer the thin product
    is written, and read by the product that adds to it: 2 in + 4 out.
    """
    way = 16 if setup.save == "plain" else 4
    return sum(2 * into + way * out for out, into in adapted_shapes(setup))


def _elementwise_traffic(setup: Setup) -> float:
    """Bytes a token of a layer read and written by norms, rotary positions, SwiGLU and sums."""
    traffic = 2.0 * (32 * setup.geometry.hidden_size + 14 * setup.geometry.intermediate_size)
    return traffic * (1 if setup.save == "plain" else LEAN_ELEMENTWISE)


def gathered_per_pass(setup: Setup) -> float:
    """Bytes of the base that a GPU must get from elsewhere in one pass over the layers."""
    if not setup.shards_base:
        return 0
    total = whole(setup)
    return layer_bytes(setup, total) * setup.geometry.num_layers + total.other


def collective_seconds(setup: Setup, size: float, calls: int = 1) -> float:
    """Seconds in which each GPU gets `size` bytes that lie divided over all of them.

    Within a node over its links; between nodes through all its network cards at once. A ring
    takes a hop from rank to rank, in each of its calls.
    """
    within = size * (setup.world_size - 1) / setup.world_size
    seconds = within / (setup.gpu.link_gb_per_second * 1e9 * LINK)
    if setup.nodes > 1:
        across = size * (setup.nodes - 1) / setup.nodes / setup.gpus_per_node
        seconds = max(seconds, across / (setup.gpu.network_gb_per_second * 1e9 * LINK))
    return seconds + calls * (setup.world_size - 1) * HOP_SECONDS


def _gather_seconds(setup: Setup) -> float:
    """Of a micro-step: the base once forward and once backward, which serves recomputing too."""
    size = gathered_per_pass(setup)
    if not size:
        return 0
    layers = setup.geometry.num_layers
    seconds = 2 * collective_seconds(setup, size, layers) if setup.world_size > 1 else 0
    if setup.offloads:
        host = setup.gpu.host_gb_per_second * 1e9 * LINK
        seconds += 2 * size / setup.world_size / host
    return seconds


def _reduce_seconds(setup: Setup) -> float:
    """Of a step: an all-reduce is a reduce-scatter and a gather of the adapters' gradients."""
    if setup.world_size == 1:
        return 0
    return 2 * collective_seconds(setup, whole(setup).gradients)


def _optimizer_seconds(setup: Setup) -> float:
    """Read weight, gradient and moments, write all but the gradient."""
    total = whole(setup)
    mine = total.adapters / (setup.world_size if setup.shards_optimizer else 1)
    rate = setup.gpu.host_gb_per_second if setup.offloads else setup.gpu.gb_per_second * BANDWIDTH
    return 7 * mine / (rate * 1e9)


def load_seconds(setup: Setup) -> float:
    """From the start of a job to its first step: bf16 weights are read once a node."""
    size = 2 * setup.geometry.num_weights
    quantizing = size / QUANTIZING_BYTES_PER_SECOND if setup.quantization else 0
    return START_SECONDS + max(size / STORAGE_BYTES_PER_SECOND, quantizing)


def save_seconds(setup: Setup) -> float:
    """Of a checkpoint: adapters and moments, gathered and written."""
    total = whole(setup)
    size = total.adapters + total.optimizer
    gathered = collective_seconds(setup, size) if setup.shards_optimizer else 0
    return 1 + gathered + size / STORAGE_BYTES_PER_SECOND
