"""Rules between sections of a recipe: each a function whose parameters name those it compares.

Knows nothing of how a recipe is read.
"""

from collections.abc import Callable

from pressroom.sections import Problems
from pressroom.train_sections import (
    DTYPES,
    Memory,
    Optimizer,
    Parallel,
    Quantization,
    Speed,
    Tracking,
)


def _one_compute_dtype(quantization: Quantization | None, memory: Memory) -> Problems:
    """A model computes in one dtype: bitsandbytes would cast to a second at every linear layer."""
    dtype = DTYPES[memory.precision]
    if quantization and quantization.compute_dtype != dtype:
        yield (
            "quantization.compute_dtype",
            f"{quantization.compute_dtype} with memory.precision {memory.precision}: must be "
            f"{dtype}",
        )


def _fsdp_shards_codes(
    quantization: Quantization | None, parallel: Parallel, memory: Memory
) -> Problems:
    """FSDP shards parameters of one float dtype: codes stored otherwise stay whole on each GPU."""
    dtype = DTYPES[memory.precision]
    fsdp = parallel.strategy in ("fsdp", "fsdp_offload")
    if fsdp and quantization and quantization.storage_dtype != dtype:
        yield (
            "quantization.storage_dtype",
            f"{quantization.storage_dtype} would not be sharded by {parallel.strategy}: must be "
            f"{dtype}, the dtype of the rest",
        )


def _sharded_optimizer(optimizer: Optimizer, parallel: Parallel) -> Problems:
    """Optimizers of bitsandbytes cannot save a sharded state."""
    if parallel.strategy not in ("ddp", "auto") and optimizer.name.startswith("paged_"):
        yield (
            "optimizer.name",
            f"{optimizer.name} cannot save its state under {parallel.strategy}: use "
            "adamw_torch_fused",
        )


def _sharded_precision(parallel: Parallel, memory: Memory) -> Problems:
    """The fp16 gradient scaler has not been tried with sharded gradients."""
    if parallel.strategy not in ("ddp", "auto") and memory.precision == "fp16":
        yield (
            "memory.precision",
            f"fp16 is not supported under {parallel.strategy}: use bf16 or fp32",
        )


def _skipped_steps(optimizer: Optimizer, parallel: Parallel) -> Problems:
    """DeepSpeed's backward pass takes the step itself: nobody has seen the gradients."""
    if optimizer.on_nan == "skip" and parallel.strategy.startswith("zero"):
        yield (
            "optimizer.on_nan",
            f"skip cannot be done under {parallel.strategy}: DeepSpeed takes a step before its "
            "gradients can be looked at; use stop, or fsdp",
        )


def _samples_of_a_whole_model(tracking: Tracking, parallel: Parallel) -> Problems:
    """Every GPU would have to gather the base anew for each token that one of them writes."""
    if tracking.sample_every_steps and parallel.strategy not in ("ddp", "zero2", "auto"):
        yield (
            "tracking.sample_every_steps",
            f"no GPU has the whole model under {parallel.strategy}, and cannot write in "
            "mid-training: must be null; `pressroom generate` writes afterwards",
        )


def _one_way_to_compute_again(memory: Memory, speed: Speed) -> Problems:
    """Under a checkpoint a layer keeps its input or its products, whatever it would keep itself."""
    mode = memory.activation_checkpointing
    if speed.save in ("less", "least") and mode in ("selective", "full"):
        yield (
            "speed.save",
            f"{speed.save} has layers compute some of themselves again, and "
            f"memory.activation_checkpointing {mode} says what is: one of them must be "
            "left out (save: auto, or activation_checkpointing: none)",
        )


RULES: tuple[Callable[..., Problems], ...] = (
    _one_compute_dtype,
    _fsdp_shards_codes,
    _sharded_optimizer,
    _sharded_precision,
    _skipped_steps,
    _samples_of_a_whole_model,
    _one_way_to_compute_again,
)
