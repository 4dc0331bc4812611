"""What a variant should take: FLOPs by formula, memory and speed by the planner."""

from typing import Any

from accelerate import PartialState
from stacks import LORA_R, Variant

from pressroom.geometry import Geometry
from pressroom.planner.memory import GIB, torch_bytes
from pressroom.planner.plan import plan
from pressroom.planner.setup import Setup
from pressroom.train_sections import Lora, Memory, Quantization
from train.summary import gpus_of_ranks


def flops_per_token(geometry: Geometry, lengths: list[int], checkpointing: str) -> dict[str, float]:
    """Model FLOPs and executed FLOPs of a token, attention as the sum of squared article lengths.

    Source: 4P + 6sdL are the model's; executed are 4P + 7sdL without checkpointing, for attention
    computes its scores again, and 6P + 9sdL with it.
    """
    weights = geometry.num_linear_weights + geometry.num_head_weights
    attended = sum(n * n for n in lengths) / sum(lengths)
    attention = attended * geometry.num_heads * geometry.head_dim * geometry.num_layers
    executed = (6, 9) if checkpointing == "full" else (4, 7)
    return {
        "model": 4.0 * weights + 6.0 * attention,
        "executed": executed[0] * weights + executed[1] * attention,
    }


def predicted(variant: Variant, geometry: Geometry, length: int) -> dict[str, Any]:
    """What the planner says of a variant on this machine; the plain stack is not ours to plan."""
    if variant.stack != "pressroom":
        return {}
    setup = Setup(
        geometry=geometry,
        quantization=Quantization(),
        lora=Lora(r=LORA_R),
        memory=Memory(activation_checkpointing=variant.checkpointing),  # type: ignore[arg-type]
        strategy="ddp",
        sequence_length=length,
        micro_batch_size=variant.micro_batch_size,
        global_batch_size=variant.micro_batch_size,
        gpu=gpus_of_ranks(PartialState()).kind,
        attention="sdpa" if variant.attention == "dense" else "flash",
    )
    planned = plan(setup)
    return {
        "predicted_peak_memory_gib": round(torch_bytes(planned.memory.step) / GIB, 2),
        "predicted_tokens_per_second": round(planned.tokens_per_second_per_gpu, 1),
    }
