"""Peaks that others measured and published, as set-ups of the planner.

What a source leaves open is assumed, and said here. Knows nothing of how they are predicted.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pressroom.geometry import SIZES, Geometry
from pressroom.planner.gpu_kinds import kind_of
from pressroom.planner.setup import Setup
from pressroom.train_sections import Lora, Memory, Quantization

GB = 1e9 / 2**30
"""A GB in GiB."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A measurement that somebody published."""

    name: str
    setup: Setup
    gib: float
    how: Literal["reserved", "allocated", "driver"]
    """What torch reserved or allocated, or what the driver says a process has."""
    source: str


def llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv: int) -> Geometry:
    """A geometry with heads of 128."""
    return Geometry(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=128,
    )


_7B, _13B, _70B = SIZES["7b"], SIZES["13b"], SIZES["70b"]
_YI_34B = llama(64000, 7168, 20480, 60, 56, 8)
_MISTRAL_7B = llama(32000, 4096, 14336, 32, 32, 8)


def setup(geometry: Geometry, micro: int, length: int, **changes: Any) -> Setup:
    """fsdp_qlora's defaults: its train.py, as of March 2024.

    PEFT's adapters with r 64 on all linears but o_proj, in bf16 as all the rest; double
    quantization, bitsandbytes' default; FSDP1 over two GPUs; each layer checkpointed; all logits.
    """
    lora = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    values = {
        "geometry": geometry,
        "quantization": Quantization(),
        "lora": Lora(r=64, alpha=16, dropout=0.1, target_modules=lora),
        "memory": Memory(activation_checkpointing="full"),
        "strategy": "fsdp",
        "sequence_length": length,
        "micro_batch_size": micro,
        "gpu": kind_of("rtx3090"),
        "gpus_per_node": 2,
        "attention": "flash",
        "full_logits": True,
        "adapter_bytes": 2,
        "fsdp_version": 1,
    } | changes
    return Setup(global_batch_size=micro * values["gpus_per_node"], **values)


BF16 = {"quantization": None}
OFFLOAD = {"strategy": "fsdp_offload"}
NO_SHARD = {"strategy": "ddp"}
ONE_GPU = {"strategy": "ddp", "gpus_per_node": 1}

# name, model, micro-batch, row, changes, GiB reserved
_FSDP_QLORA = (
    ("7B QLoRA, rows of 512", _7B, 1, 512, {}, 4.98),
    ("7B QLoRA", _7B, 1, 2048, {}, 5.21),
    ("7B QLoRA", _7B, 4, 2048, {}, 11.22),
    ("7B QLoRA", _7B, 10, 2048, {}, 20.97),
    ("7B QLoRA, NO_SHARD", _7B, 8, 2048, NO_SHARD, 20.94),
    ("7B LoRA, rows of 512", _7B, 1, 512, BF16, 10.24),
    ("7B LoRA", _7B, 1, 2048, BF16, 10.22),
    ("7B LoRA", _7B, 4, 2048, BF16, 16.14),
    ("7B LoRA", _7B, 6, 2048, BF16, 21.35),
    ("7B LoRA, NO_SHARD", _7B, 4, 2048, BF16 | NO_SHARD, 22.04),
    ("7B LoRA, offload", _7B, 10, 2048, BF16 | OFFLOAD, 22.69),
    ("7B QLoRA, offload", _7B, 12, 2048, OFFLOAD, 22.38),
    ("Yi 34B QLoRA", _YI_34B, 2, 2048, {}, 23.05),
    ("Yi 34B QLoRA, offload", _YI_34B, 4, 2048, OFFLOAD, 22.98),
    ("70B QLoRA, offload", _70B, 2, 2048, OFFLOAD, 14.92),
    ("Mistral 7B QLoRA, offload", _MISTRAL_7B, 12, 2048, OFFLOAD, 22.54),
    ("Mistral 7B QLoRA, offload, rows of 24,576", _MISTRAL_7B, 1, 24576, OFFLOAD, 22.54),
)

# PEFT's example: r 8 on all linears, dropout 0.1. Assumed: adapters in fp32, as accelerate makes
# them in mixed precision; the driver's figure, in GB.
_PEFT: dict[str, Any] = {"lora": Lora(r=8, alpha=16, dropout=0.1), "adapter_bytes": 4}
_PEFT_DOCS = (
    ("70B QLoRA", _70B, 2, 2048, _PEFT, 35.6 * GB),
    ("70B QLoRA, offload", _70B, 2, 2048, _PEFT | OFFLOAD, 19.6 * GB),
)

# Lightning's own model and loss: everything in bf16, chunked loss, no checkpointing; the longest
# row of its data has 1,304 tokens.
_LIT: dict[str, Any] = ONE_GPU | {
    "lora": Lora(r=8, dropout=0.05, target_modules=("q_proj", "v_proj")),
    "memory": Memory(),
    "full_logits": False,
    "gpu": kind_of("a100-40"),
}
# bitsandbytes 0.41 kept the input of each 4-bit linear, as an adapter on each does.
_INPUTS = {"lora": Lora(r=2, dropout=0.05)}
_SINGLE = _INPUTS | {"quantization": Quantization(double_quant=False)}
_LIT_GPT = (
    ("7B LoRA", _7B, 1, 1304, _LIT | BF16, 21.30 * GB),
    ("7B NF4", _7B, 1, 1304, _LIT | _SINGLE, 14.14 * GB),
    ("7B NF4, double", _7B, 1, 1304, _LIT | _INPUTS, 13.84 * GB),
    ("7B LoRA", _7B, 2, 1304, _LIT | BF16, 29.07 * GB),
    ("13B LoRA", _13B, 1, 1304, _LIT | BF16, 38.12 * GB),
    ("13B NF4", _13B, 1, 1304, _LIT | _SINGLE, 23.14 * GB),
    ("13B NF4, double", _13B, 1, 1304, _LIT | _INPUTS, 22.55 * GB),
)

# Assumed: checkpointing and double quantization, the library's defaults; adapters in fp32; the
# driver's figure, in whole GiB.
_FACTORY: dict[str, Any] = ONE_GPU | {
    "lora": Lora(r=8),
    "adapter_bytes": 4,
    "gpu": kind_of("a100-40"),
}
_LLAMA_FACTORY = tuple(
    (f"7B QLoRA, rows of {length:,}", _7B, 1, length, _FACTORY, float(gib))
    for length, gib in ((1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32))
)

# All logits then; everything in bf16. Assumed: reserved, in GB.
_TUNE: dict[str, Any] = ONE_GPU | {"lora": Lora(r=8), "gpu": kind_of("rtx4090")}
_TUNE_QV = _TUNE | BF16 | {"lora": Lora(r=8, target_modules=("q_proj", "v_proj"))}
_TORCHTUNE = (
    ("7B QLoRA", _7B, 4, 2048, _TUNE, 12.3 * GB),
    ("7B LoRA on q, v", _7B, 4, 2048, _TUNE_QV, 21.3 * GB),
)

_SOURCES = {
    "AnswerDotAI/fsdp_qlora, benchmarks_03_2024.md": ("reserved", _FSDP_QLORA),
    "PEFT documentation, accelerate/fsdp.md": ("driver", _PEFT_DOCS),
    "lit-gpt, tutorials/resource-tables.md, October 2023": ("allocated", _LIT_GPT),
    "LLaMA-Factory wiki, performance comparison, April 2024": ("driver", _LLAMA_FACTORY),
    "torchtune, README, May 2024": ("reserved", _TORCHTUNE),
}

PEAKS = [
    Published(
        name=f"{name}, micro-batch {micro}",
        setup=setup(geometry, micro, length, **changes),
        gib=gib,
        how=how,  # type: ignore[arg-type]
        source=source,
    )
    for source, (how, rows) in _SOURCES.items()
    for name, geometry, micro, length, changes, gib in rows
]

FITS = [
    ("70B QLoRA on 8 x 24 GB", setup(_70B, 1, 2048, gpus_per_node=8)),
    ("70B QLoRA on 2 x A100-40", setup(_70B, 1, 2048, gpu=kind_of("a100-40"))),
]
"""Set-ups that ran; their peaks were not printed. Source: fsdp_qlora, same page."""

HOST_GB = 107.0
"""Of PEFT's second set-up: what is offloaded, its ranks and all."""
