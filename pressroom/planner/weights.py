"""Bytes of weights: the base, its scales and the adapters, counted from shapes.

Exact, and held against bitsandbytes and peft in tests. Knows nothing of GPUs or strategies.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pressroom.geometry import Geometry
from pressroom.train_sections import DTYPES, Lora, Memory, Quantization

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
BLOCK = 64
"""Weights that share a scale."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own, with double quantization."""


@dataclass(frozen=True, kw_only=True)
class LinearBytes:
    """A quantized linear layer, as bitsandbytes holds it."""

    codes: int
    """Two codes a byte, rounded up to whole elements of the storage dtype."""
    scales: int
    """Scales, the code book, and with double quantization the scales' own scales and book."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.codes + self.scales


def quantized_linear(
    out_features: int, in_features: int, quantization: Quantization
) -> LinearBytes:
    """Bytes of one linear layer in 4 bits.

    Source: bitsandbytes' `quantize_4bit` and `QuantState`: blocks of 64 weights with an fp32 scale
    each and a book of 16 fp32 codes; nested, an 8-bit scale a block, an fp32 a 256 of them, an fp32
    offset and a book of 256 fp32 codes.
    """
    weights = out_features * in_features
    element = DTYPE_BYTES[quantization.storage_dtype]
    packed = -(-weights // 2)
    blocks = -(-weights // BLOCK)
    book = 16 * 4
    if quantization.double_quant:
        scales = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 + 256 * 4 + book
    else:
        scales = 4 * blocks + book
    return LinearBytes(codes=-(-packed // element) * element, scales=scales)


def adapter_weights(geometry: Geometry, lora: Lora) -> int:
    """Parameters of the adapters: r x (in + out) on each layer that has one."""
    shapes = geometry.linear_shapes
    names: Iterable[str] = shapes if lora.target_modules == "all-linear" else lora.target_modules
    return geometry.num_layers * lora.r * sum(sum(shapes[name]) for name in names)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of everything that lies on a GPU before a step, undivided."""

    codes: int
    scales: int
    linears: int
    """Of decoder linears that are not quantized."""
    other: int
    """Embeddings, norms and the output head, in the dtype of computing."""
    adapters: int
    """fp32, under every strategy."""

    def in_dtype(self, adapter_bytes: int) -> "Weights":
        """The same with adapters, gradients and moments of other elements than fp32."""
        return replace(self, adapters=self.adapters * adapter_bytes // 4)

    @property
    def base(self) -> int:
        """The frozen model."""
        return self.codes + self.scales + self.linears + self.other

    @property
    def gradients(self) -> int:
        """Of the adapters, fp32."""
        return self.adapters

    @property
    def optimizer(self) -> int:
        """Two fp32 moments of each adapter weight."""
        return 2 * self.adapters


def weights(
    geometry: Geometry, quantization: Quantization | None, lora: Lora, memory: Memory
) -> Weights:
    """Count a model's bytes with its adapters."""
    element = DTYPE_BYTES[DTYPES[memory.precision]]
    codes = scales = linears = 0
    for out, into in geometry.linear_shapes.values():
        if quantization is None:
            linears += element * out * into
        else:
            layer = quantized_linear(out, into, quantization)
            codes += layer.codes
            scales += layer.scales
    return Weights(
        codes=geometry.num_layers * codes,
        scales=geometry.num_layers * scales,
        linears=geometry.num_layers * linears,
        other=element * geometry.num_other_weights,
        adapters=4 * adapter_weights(geometry, lora),
    )
