"""A recipe's `speed` on a model: which attention, which layers are lean, and one line about it.

Knows nothing of how either is computed.
"""

import ctypes
from contextlib import suppress

import torch
from peft import PeftModel

from pressroom.console import log
from pressroom.recipe import Recipe
from pressroom.train_sections import DTYPES
from train import attention, fast
from train.fast import Report

LEVELS = {"auto": 0, "all": 0, "less": 1, "least": 2}
"""What `speed.save` says -> a level of `train/fast_layer.py`. `auto` is left where the planner has
no plan for a recipe."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MOST = -1, -3, 2**25
"""Parameters of glibc's `mallopt`, and the most that the second may be."""


def quicken(
    model: PeftModel, recipe: Recipe, device: torch.device, *, is_main: bool = True
) -> Report | None:
    """Have a model train as fast as the recipe allows and the machine can.

    Args:
        model: With adapters, ready to train.
        recipe: Its `speed`, and what forbids some of it.
        device: Where it is, or will be.
        is_main: Whether this rank says what was done.

    Returns:
        What became of the layers, or None where they are to stay as they are.

    Raises:
        UserError: The recipe asks for an attention that is not here.
    """
    base, speed = model.get_base_model(), recipe.speed
    dtype = getattr(torch, DTYPES[recipe.memory.precision])
    backend = attention.choose(speed.attention, device, dtype)
    if base.config.attention_dropout:
        backend = "dense"  # the others have none
    selective = recipe.memory.activation_checkpointing == "selective"
    if backend == "flex" and selective and speed.attention == "auto":
        backend = "blocks"  # what is compiled is no operation that could be kept
    attention.attach(base, backend)
    report = None
    if speed.save != "plain":
        if why := _why_plain(recipe):
            count = base.config.num_hidden_layers
            report = Report(patched=0, skipped=count, reasons={why: count})
        else:
            is_cached = speed.cache == "all"
            report = fast.speed_up(model, level=LEVELS[speed.save], is_cached=is_cached)
            if device.type == "cpu":
                _keep_freed_memory()
    if is_main:
        kept = f", save {speed.save}" if report and report.patched else ""
        what = report or "all layers plain, as asked"
        log.info("speed: attention by %s%s; %s", backend, kept, what)
    return report


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees, which the system would clear anew for the next."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _MOST)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _why_plain(recipe: Recipe) -> str | None:
    if recipe.memory.activation_checkpointing == "selective":
        return "selective checkpointing chooses by itself what is kept"
    if recipe.parallel.strategy.startswith("zero3"):
        return "ZeRO-3 gathers weights module by module"
    return None
