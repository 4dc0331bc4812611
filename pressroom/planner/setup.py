"""A set-up: everything that a training step's memory and time depend on.

Made from a recipe, or by hand for a measurement that somebody published. Knows nothing of
formulas.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from pressroom.console import UserError
from pressroom.geometry import Geometry
from pressroom.planner.decoder_layer import Attention
from pressroom.planner.gpu_kinds import GpuKind
from pressroom.planner.weights import DTYPE_BYTES
from pressroom.recipe import Recipe
from pressroom.train_sections import DTYPES, Lora, Memory, Quantization, Save, Strategy


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model, how it is trained, and the GPUs."""

    geometry: Geometry
    quantization: Quantization | None
    lora: Lora
    memory: Memory
    strategy: Strategy
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    gpu: GpuKind
    nodes: int = 1
    gpus_per_node: int = 1
    paged_optimizer: bool = False
    """Whether the moments go to host memory when the GPU is full: they are not counted."""
    attention: Attention = "sdpa"
    """What the trainer uses; `sdpa` with a dense mask over the whole micro-batch."""
    save: Save = "plain"
    """What lean layers keep, where the trainer knows them."""
    is_cached: bool = False
    """Whether 4-bit weights are dequantized once."""
    full_logits: bool = False
    """Whether a loss holds all logits at once; ours never does."""
    adapter_bytes: int = 4
    """Of one adapter weight; others train them in bf16."""
    loads_on_gpu: bool = True
    """Whether each rank loads the whole base before it is divided; under fsdp ours does not."""
    fsdp_version: Literal[1, 2] = 2
    """1 pins a gradient in host memory for each offloaded weight, frozen ones too."""

    @classmethod
    def of(
        cls, recipe: Recipe, geometry: Geometry, gpu: GpuKind, nodes: int, gpus_per_node: int
    ) -> "Setup":
        """A resolved recipe's set-up on so many GPUs.

        Raises:
            UserError: The global batch does not divide over them, the GPUs cannot compute in the
                recipe's precision, or something is still `auto`; of speed, that counts as `all`
                without a cache.
        """
        if recipe.autos:
            raise UserError(f"{', '.join(recipe.autos)}: auto is not filled in yet")
        save = _save(recipe, geometry)
        is_divided = recipe.parallel.strategy.startswith(("fsdp", "zero3"))
        is_kept = save != "plain" and recipe.quantization is not None and not is_divided
        setup = cls(
            geometry=geometry,
            quantization=recipe.quantization,
            lora=recipe.lora,
            memory=recipe.memory,
            strategy=cast(Strategy, recipe.parallel.strategy),
            sequence_length=recipe.sequence_length,
            micro_batch_size=recipe.batch.micro,
            global_batch_size=recipe.batch.global_batch_size,
            gpu=gpu,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            paged_optimizer=recipe.optimizer.name.startswith("paged_"),
            attention="sdpa" if recipe.speed.attention == "dense" else "flash",
            save=save,
            is_cached=is_kept and recipe.speed.cache == "all",
            loads_on_gpu=not recipe.parallel.strategy.startswith("fsdp"),
        )
        setup._require_precision()
        recipe.batch.gradient_accumulation_steps(setup.world_size)
        return setup

    def but(self, **changes: Any) -> "Setup":
        """The same set-up with other values."""
        return replace(self, **changes)

    @property
    def cached(self) -> int:
        """Bytes of the weights that are dequantized once."""
        size = DTYPE_BYTES[DTYPES[self.memory.precision]]
        return self.is_cached * size * self.geometry.num_linear_weights

    @property
    def world_size(self) -> int:
        """Ranks, one a GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def tokens(self) -> int:
        """Of a rank's micro-batch."""
        return self.micro_batch_size * self.sequence_length

    @property
    def accumulation(self) -> int:
        """Micro-steps of a step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def shards_base(self) -> bool:
        """Whether the frozen base is divided over the ranks."""
        return self.strategy in ("fsdp", "fsdp_offload", "zero3", "zero3_offload")

    @property
    def shards_optimizer(self) -> bool:
        """Whether gradients and moments are divided."""
        return self.strategy != "ddp"

    @property
    def offloads(self) -> bool:
        """Whether weights and moments live in host memory."""
        return self.strategy.endswith("_offload")

    def _require_precision(self) -> None:
        if self.memory.precision == "bf16" and not self.gpu.has_bf16:
            raise UserError(
                f"memory.precision: bf16, and {self.gpu.name} has none: use memory.precision=fp16 "
                "quantization.compute_dtype=float16 parallel.strategy=ddp"
            )


def _save(recipe: Recipe, geometry: Geometry) -> Save:
    """What layers keep: `plain` where the recipe shows that lean layers do not know them."""
    lora, targets = recipe.lora, recipe.lora.target_modules
    is_known = (
        recipe.speed.attention != "dense"
        and recipe.memory.activation_checkpointing != "selective"
        and not recipe.parallel.strategy.startswith("zero3")
        and not lora.dropout
        and (targets == "all-linear" or set(targets) >= set(geometry.linear_shapes))
    )
    save = "all" if recipe.speed.save == "auto" else recipe.speed.save
    return save if is_known else "plain"
