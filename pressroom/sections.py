"""The sections of a recipe: what each field means, and which combinations it cannot have.

Numbers that follow from others are methods, never fields. Rules that compare two sections stand
in `pressroom/recipe.py`. Knows no torch.
"""

import difflib
from collections.abc import Iterator
from datetime import date
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pressroom.columns import Columns
from pressroom.console import UserError
from pressroom.prompts import FORMATS

Problems = Iterator[tuple[str, str]]
Dtype = Literal["bfloat16", "float16", "float32"]
Precision = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Precision, Dtype] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


class Section:
    """A part of a config that knows its own impossible combinations."""

    def problems(self) -> Problems:
        """Yield (field, what is wrong) for each impossible combination."""
        yield from ()

    def __post_init__(self) -> None:
        found = list(self.problems())
        if found:
            text = "; ".join(f"{name}: {message}" for name, message in found)
            raise PydanticCustomError("rule", "{text}", {"text": text, "found": found})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Model(Section):
    """The pretrained model that is fine-tuned."""

    base: str
    """A local folder, or a hub id (`organisation/name`)."""
    revision: str = "main"
    """The commit or branch of a hub id; a local folder has none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data(Section):
    """The articles and how they are cleaned and divided."""

    articles: Annotated[tuple[str, ...], Field(min_length=1)]
    """JSONL, Parquet or Arrow files, globs, folders of `datasets`, `hub:ORG/NAME[@REV][/GLOB]`."""
    columns: Columns = Field(default_factory=Columns)
    lower_case: bool = False
    """Whether titles and descriptions are lower-cased."""
    held_out: Share | date = 0.05
    """The share of articles kept for evaluation, or the first day of publication kept."""
    overlong: Literal["split", "reject"] = "split"
    """What becomes of an article longer than a row."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompt(Section):
    """How an article becomes text."""

    format: str = "news"
    """A name in `pressroom/prompts.py`: news, llama2-chat, alpaca, vicuna, plain."""
    train_on: Literal["all", "answer"] | None = None
    """What carries loss: all after BOS, or the description and eos. Null: the format's own."""

    def problems(self) -> Problems:
        """The format is known."""
        if self.format not in FORMATS:
            close = difflib.get_close_matches(self.format, FORMATS, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield "format", f"{self.format!r} is not one of {', '.join(FORMATS)}{hint}"

    @property
    def trains_on(self) -> Literal["all", "answer"]:
        """Which tokens carry loss, the format's own default applied."""
        return self.train_on or FORMATS[self.format].train_on


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
    micro_batch_size: Positive
    """Rows that one rank holds at a time."""

    def problems(self) -> Problems:
        """The micro-batch divides the global batch."""
        if self.global_batch_size % self.micro_batch_size:
            yield (
                "micro_batch_size",
                f"{self.micro_batch_size} does not divide global_batch_size "
                f"{self.global_batch_size}",
            )

    def divides_over(self, world_size: int) -> bool:
        """Whether the global batch is the same on that many ranks."""
        return self.global_batch_size % (self.micro_batch_size * world_size) == 0

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Micro-steps of one optimizer step on each rank.

        Raises:
            UserError: The global batch does not divide over the ranks.
        """
        if not self.divides_over(world_size):
            most = self.global_batch_size // self.micro_batch_size
            fits = [str(n) for n in range(1, most + 1) if self.divides_over(n)]
            raise UserError(
                f"batch.global_batch_size: {self.global_batch_size} rows in micro-batches of "
                f"{self.micro_batch_size} do not divide over {world_size} ranks; "
                f"world sizes that fit: {', '.join(fits)}"
            )
        return self.global_batch_size // (self.micro_batch_size * world_size)

    def arithmetic(self, world_size: int, sequence_length: int) -> str:
        """The batch in one line, as printed before the first step."""
        steps = self.gradient_accumulation_steps(world_size)
        ranks = "rank" if world_size == 1 else "ranks"
        return (
            f"{self.global_batch_size} global = {self.micro_batch_size} micro x {steps} "
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
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of the adapters."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.3
    """Gradients are clipped to this norm; 0 leaves them."""
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

    strategy: Literal["ddp", "fsdp", "fsdp_offload", "zero2", "zero3", "zero3_offload"] = "ddp"
    """Uses `accelerate_configs/STRATEGY.yaml`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Memory(Section):
    """What is traded for memory."""

    precision: Precision = "bf16"
    """What the model computes in; the adapters are kept and updated in fp32."""
    activation_checkpointing: Literal["none", "full"] = "none"
    """Whether decoder layers are computed again in the backward pass."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checkpoint(Section):
    """What a killed run goes on from."""

    every_steps: Positive = 100
    """Steps between two checkpoints."""
    keep_last: Positive = 2
    """How many are kept."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluation(Section):
    """Loss on the held-out articles during training."""

    every_steps: Positive | None = None
    """Steps between two evaluations; null: none."""
    micro_batch_size: Positive = 8
    """Articles that are scored at a time after training."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Generation(Section):
    """What the finished model writes, beside what the base writes."""

    prompts: tuple[str, ...] = ("city!",)
    """Texts that are continued as they stand."""
    titles: Annotated[int, Field(ge=0)] = 3
    """How many held-out titles get a description."""
    max_new_tokens: Positive = 128
    """Where a text that does not end by itself is cut."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 takes the likeliest token each time."""
