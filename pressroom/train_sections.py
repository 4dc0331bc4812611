"""The sections of a recipe that say how it is trained.

Numbers that follow from others are methods, never fields. Knows no torch.
"""

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pressroom.console import UserError
from pressroom.sections import STRICT, Positive, Problems, Section

Dtype = Literal["bfloat16", "float16", "float32"]
Precision = Literal["bf16", "fp16", "fp32"]
Strategy = Literal["ddp", "fsdp", "fsdp_offload", "zero2", "zero3", "zero3_offload"]
Checkpointing = Literal["none", "selective", "full"]
Save = Literal["all", "less", "least", "plain"]
Auto = Literal["auto"]
"""What the planner fills in before anything starts: the fastest that fits."""
DTYPES: dict[Precision, Dtype] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Quantization(Section):
    """How the frozen base is stored: 4-bit codes in blocks of 64."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit code book."""
    double_quant: bool = True
    """Whether the scales are quantized too: 4.127 in place of 4.5 bits a weight."""
    compute_dtype: Dtype = "bfloat16"
    """What the codes are dequantized to for a matrix product."""
    storage_dtype: Literal["bfloat16", "float16", "float32", "uint8"] = "bfloat16"
    """The dtype that packs the codes; FSDP shards only what looks like the model's own dtype."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lora(Section):
    """The adapters that are trained."""

    r: Positive = 16
    """Rank of the adapters."""
    alpha: Positive = 32
    """The adapters' output is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = (
        "all-linear"
    )
    """Which linear layers get an adapter; the output head never does."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Batch(Section):
    """Sizes in packed rows."""

    global_batch_size: Positive
    """Rows of one optimizer step, over all ranks: fixed, however many GPUs there are."""
    micro_batch_size: Positive | Auto
    """Rows that one rank holds at a time; `auto`: what is fastest on the GPUs of the run."""

    @property
    def micro(self) -> int:
        """The micro-batch, once it is settled.

        Raises:
            UserError: It is still `auto`.
        """
        if self.micro_batch_size == "auto":
            raise UserError(
                "batch.micro_batch_size: auto is filled in for the GPUs that train: "
                "`pressroom plan RECIPE --gpus 8xA100-80` says what it would be"
            )
        return self.micro_batch_size

    def problems(self) -> Problems:
        """The micro-batch divides the global batch."""
        if self.micro_batch_size != "auto" and self.global_batch_size % self.micro_batch_size:
            yield (
                "micro_batch_size",
                f"{self.micro_batch_size} does not divide global_batch_size "
                f"{self.global_batch_size}",
            )

    def divides_over(self, world_size: int) -> bool:
        """Whether the global batch is the same on that many ranks."""
        return self.global_batch_size % (self.micro * world_size) == 0

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Micro-steps of one optimizer step on each rank.

        Raises:
            UserError: The global batch does not divide over the ranks.
        """
        if not self.divides_over(world_size):
            most = self.global_batch_size // self.micro
            fits = [str(n) for n in range(1, most + 1) if self.divides_over(n)]
            raise UserError(
                f"batch.global_batch_size: {self.global_batch_size} rows in micro-batches of "
                f"{self.micro} do not divide over {world_size} ranks; "
                f"world sizes that fit: {', '.join(fits)}"
            )
        return self.global_batch_size // (self.micro * world_size)

    def arithmetic(self, world_size: int, sequence_length: int) -> str:
        """The batch in one line, as printed before the first step."""
        steps = self.gradient_accumulation_steps(world_size)
        ranks = "rank" if world_size == 1 else "ranks"
        return (
            f"{self.global_batch_size} global = {self.micro} micro x {steps} "
            f"accumulation x {world_size} {ranks}; up to "
            f"{self.global_batch_size * sequence_length:,} tokens a step"
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimizer(Section):
    """How the adapters are updated, and for how long."""

    name: Literal["adamw_torch_fused", "adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"] = (
        "adamw_torch_fused"
    )
    """Paged optimizers move their state to host memory when the GPU is full; they need CUDA."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """The peak, reached after warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises from zero, which is the first step's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of the adapters."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.3
    """Gradients are clipped to this norm; 0 leaves them."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What becomes of a step whose loss or gradient is not a number: it ends the run, or it changes
    nothing and is counted; five in a row end the run."""
    num_steps: Positive | None = None
    """Optimizer steps, or else num_epochs."""
    num_epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows, or else num_steps."""

    def problems(self) -> Problems:
        """Training has exactly one length."""
        if (self.num_steps is None) == (self.num_epochs is None):
            yield "num_steps", "give either num_steps or num_epochs"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Parallel(Section):
    """How the work is divided over ranks."""

    strategy: Literal[Strategy, "auto"] = "ddp"
    """ddp: each GPU has the whole base; zero2 divides gradients and optimizer state, fsdp and zero3
    the base too, their _offload kinds in host memory. `accelerate_configs/` has a file of each.
    `auto`: the fastest that fits the GPUs of the run."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Memory(Section):
    """What is traded for memory."""

    precision: Precision = "bf16"
    """What the model computes in; the adapters are kept and updated in fp32."""
    activation_checkpointing: Literal[Checkpointing, "auto"] = "none"
    """What of a decoder layer is computed again in the backward pass: nothing, all but its large
    matrix products and attention, or everything; `auto`: the fastest that fits."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Speed(Section):
    """How fast the same numbers are computed: `auto`, `off`, or key by key."""

    attention: Literal["auto", "varlen", "fa2", "flex", "blocks", "dense"] = "auto"
    """How articles see themselves only: PyTorch's or flash-attn's FlashAttention, FlexAttention,
    SDPA article by article, or SDPA under one mask over the micro-batch; `auto`: the first of these
    that is there."""
    save: Literal[Save, "auto"] = "auto"
    """What lean layers keep for the backward pass, where nothing is checkpointed: all that is wide;
    not gate and up; not the first residual sum either; `auto`: the fastest that fits. `plain`:
    transformers' and PEFT's own layers. What lean layers do not know, such as dropout, stays plain
    by itself."""
    cache: Literal["all", "none", "auto"] = "auto"
    """Whether 4-bit weights that are not divided over ranks are dequantized once, and kept so;
    `auto`: where they fit, on a CPU in a fifth of its memory."""


def _spelled_out(value: Any) -> Any:
    """`auto` and `off` as sections."""
    if value == "auto":
        return {}
    if value == "off":
        return {"attention": "dense", "save": "plain", "cache": "none"}
    if isinstance(value, dict | Speed):
        return value
    raise PydanticCustomError("speed", "must be auto, off or a section")


SpeedOrWord = Annotated[Speed, BeforeValidator(_spelled_out)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checkpoint(Section):
    """What a killed run goes on from."""

    every_steps: Positive = 100
    """Steps between two checkpoints."""
    keep_last: Positive = 2
    """How many are kept."""
    keep_best: bool = True
    """Whether the one with the lowest held-out loss is kept besides; each new lowest is saved."""

    @property
    def most_kept(self) -> int:
        """How many there can be at a time, not counting one that is being written."""
        return self.keep_last + self.keep_best


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tracking(Section):
    """Who else is told how the training goes, beside metrics.jsonl."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """TensorBoard is part of the installation, the others are used where they are installed.
    They take projects, addresses and keys from their own environment variables."""
    sample_every_steps: Positive | None = None
    """Steps between two sets of samples, what `generation` asks for, written in mid-training to
    samples.jsonl and to the trackers; null: none. Only where a GPU has the whole model."""

    def require(self) -> None:
        """See that every tracker is installed here.

        Raises:
            UserError: Naming each that is not.
        """
        missing = [name for name in self.trackers if find_spec(name) is None]
        if missing:
            raise UserError(
                f"tracking.trackers: {', '.join(missing)} not installed: pip install "
                f"{' '.join(missing)}, or take it out of the list"
            )
