"""What a variant should take: FLOPs by formula, memory and speed by the planner; if it can be."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from stacks import Variant, bench_recipe

from pressroom.console import UserError
from pressroom.geometry import Geometry
from pressroom.planner.choice import option
from pressroom.planner.flops import hardware_flops_per_token
from pressroom.planner.memory import GIB, torch_bytes
from pressroom.train_sections import Checkpointing, Save
from train.speed import attention_here
from train.summary import gpus_of_ranks


def flops_per_token(
    geometry: Geometry, lengths: list[int], checkpointing: str, save: Save = "plain"
) -> dict[str, float]:
    """Model FLOPs and executed FLOPs of a token, attention as the sum of squared article lengths.

    Source: 4P + 6sdL are the model's; executed are 4P + 7sdL without checkpointing, for attention
    computes its scores again, and 6P + 9sdL with it; and what lean layers compute again.
    """
    attended = sum(n * n for n in lengths) / sum(lengths)
    mode = cast(Checkpointing, checkpointing)
    return {
        "model": geometry.model_flops_per_token(attended),
        "executed": hardware_flops_per_token(geometry, attended, mode, save),
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


def require_possible(
    variants: Sequence[Variant], geometry: Geometry, length: int, device: torch.device
) -> None:
    """See that each of our variants is a recipe, and its attention here, before minutes are spent.

    Raises:
        UserError: Naming each that is not.
    """
    wrong = []
    for variant in variants:
        if variant.stack != "pressroom":
            continue
        try:
            recipe = bench_recipe(variant, geometry, length, 1, 1, Path(tempfile.mkdtemp()))
            attention_here(recipe, geometry.head_dim, device)
        except UserError as error:
            wrong.append(f"{variant}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))
