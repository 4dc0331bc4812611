"""What a variant should take: FLOPs by formula, memory and speed by the planner."""

import tempfile
from pathlib import Path
from typing import Any

from accelerate import PartialState
from stacks import Variant, bench_recipe

from pressroom.geometry import Geometry
from pressroom.planner.choice import option
from pressroom.planner.memory import GIB, torch_bytes
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
    folder = Path(tempfile.mkdtemp())
    recipe = bench_recipe(variant, geometry, length, 1, 1, folder)
    planned = option(recipe, geometry, gpus_of_ranks(PartialState())).plan
    return {
        "predicted_peak_memory_gib": round(torch_bytes(planned.memory.step) / GIB, 2),
        "save": planned.setup.save,
        "weights_dequantized_once": planned.setup.is_cached,
        "predicted_tokens_per_second": round(planned.tokens_per_second_per_gpu, 1),
    }
