"""The plan of one run: memory, host, disk, time and cost of a set-up, as plain figures.

Pure functions of a set-up; `pressroom/planner/choice.py` compares several. Knows nothing of files
or terminals.
"""

import math
from dataclasses import dataclass
from typing import Any

from pressroom.planner.memory import (
    GIB,
    Disk,
    GpuMemory,
    disk,
    gpu_memory,
    host_bytes,
    torch_bytes,
)
from pressroom.planner.setup import Setup
from pressroom.planner.speed import StepTime, load_seconds, save_seconds, step_time

MARGIN = 0.05
"""Of a GPU's memory that `auto` leaves free: the planner's own error against measured peaks."""
LEAD_MARGIN_SECONDS = 30.0
"""For what agrees on stopping, and for a step that comes out slower."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs, and what it costs."""

    setup: Setup
    memory: GpuMemory
    host_bytes: float
    """Of a node."""
    disk: Disk
    step: StepTime
    load_seconds: float
    save_seconds: float
    num_steps: int | None
    """None where nobody knows yet how many rows there are."""
    every_steps: int
    """Steps between two checkpoints."""

    @property
    def peak_gib(self) -> float:
        """Of one GPU, at load or in a step, whichever is higher."""
        return self.memory.peak / GIB

    @property
    def fits(self) -> bool:
        """Whether the peak is within the GPU's memory."""
        return self.peak_gib <= self.setup.gpu.memory_gib

    @property
    def fits_well(self) -> bool:
        """Whether a margin is left too."""
        return self.peak_gib <= self.setup.gpu.memory_gib * (1 - MARGIN)

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """In steps; saving and loading come on top."""
        setup = self.setup
        tokens = setup.global_batch_size * setup.sequence_length
        return tokens / self.step.total / setup.world_size

    @property
    def mfu(self) -> float:
        """Model FLOPs a second, of the datasheet's rate."""
        flops = self.setup.geometry.model_flops_per_token(self.setup.sequence_length)
        return self.tokens_per_second_per_gpu * flops / (self.setup.gpu.tflops * 1e12)

    @property
    def run_seconds(self) -> float | None:
        """From the start of the job to its end."""
        if self.num_steps is None:
            return None
        saves = math.ceil(self.num_steps / self.every_steps)
        return self.load_seconds + self.num_steps * self.step.total + saves * self.save_seconds

    @property
    def gpu_hours(self) -> float | None:
        """Of the whole run."""
        return None if self.run_seconds is None else self.run_seconds * self.setup.world_size / 3600

    @property
    def lead_seconds(self) -> float:
        """How long before its end a job must be told, to finish its step and save."""
        return math.ceil(self.step.total + self.save_seconds + LEAD_MARGIN_SECONDS)

    def figures(self) -> dict[str, Any]:
        """All of it as JSON values: GiB, seconds, tokens."""
        setup, step = self.setup, self.step
        return {
            "gpu": setup.gpu.name,
            "nodes": setup.nodes,
            "gpus_per_node": setup.gpus_per_node,
            "strategy": setup.strategy,
            "activation_checkpointing": setup.memory.activation_checkpointing,
            "save": setup.save,
            "weights_dequantized_once": setup.is_cached,
            "micro_batch_size": setup.micro_batch_size,
            "gradient_accumulation_steps": setup.accumulation,
            "fits": self.fits,
            "gpu_memory_gib": setup.gpu.memory_gib,
            "peak_gib": _gib(self.memory.peak),
            "peak_at_load_gib": _gib(sum(self.memory.load.values())),
            "peak_in_step_gib": _gib(sum(self.memory.step.values())),
            "peak_reserved_by_torch_gib": _gib(torch_bytes(self.memory.step)),
            "load_gib": {name: _gib(size) for name, size in self.memory.load.items() if size},
            "step_gib": {name: _gib(size) for name, size in self.memory.step.items() if size},
            "host_gib_per_node": _gib(self.host_bytes),
            "disk_gib": {name: _gib(size) for name, size in vars(self.disk).items()},
            "load_seconds": round(self.load_seconds, 1),
            "step_seconds": round(step.total, 3),
            "step_seconds_by_part": {n: round(s, 4) for n, s in vars(step).items()},
            "save_seconds": round(self.save_seconds, 1),
            "tokens_per_second_per_gpu": round(self.tokens_per_second_per_gpu, 1),
            "mfu": round(self.mfu, 4),
            "num_steps": self.num_steps,
            "run_hours": None if self.run_seconds is None else round(self.run_seconds / 3600, 3),
            "gpu_hours": None if self.gpu_hours is None else round(self.gpu_hours, 2),
            "preemption_lead_seconds": self.lead_seconds,
        }


def _gib(size: float) -> float:
    return round(size / GIB, 3)


def plan(
    setup: Setup,
    *,
    num_steps: int | None = None,
    num_rows: int = 0,
    every_steps: int = 100,
    num_kept: int = 3,
) -> Plan:
    """Predict a set-up.

    Args:
        setup: The model, how it is trained, the GPUs.
        num_steps: Of the run, where it is known.
        num_rows: Of the dataset, where it is there.
        every_steps: Between two checkpoints.
        num_kept: Checkpoints that are kept.
    """
    return Plan(
        setup=setup,
        memory=gpu_memory(setup),
        host_bytes=host_bytes(setup),
        disk=disk(setup, num_kept, num_rows),
        step=step_time(setup),
        load_seconds=load_seconds(setup),
        save_seconds=save_seconds(setup),
        num_steps=num_steps,
        every_steps=every_steps,
    )
