"""The recipe: everything that decides what a run makes, and nothing about where it runs.

A recipe is one YAML file (`train/recipes/` has those that are shipped), read by
`Recipe.load`. Each section checks itself; a rule that compares two sections is a function whose
parameters name them. Numbers that follow from others are methods, never fields. Knows no torch.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pressroom import strict_yaml
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
    """JSONL or Parquet files, or globs of them."""
    lower_case: bool = False
    """Whether titles and descriptions are lower-cased."""
    held_out: Share | date = 0.05
    """The share of articles kept for evaluation, or the first day of publication kept."""
    overlong: Literal["split", "reject"] = "split"
    """What becomes of an article longer than a row."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompt(Section):
    """How an article becomes text."""

    format: Literal["news", "llama2-chat"] = "news"
    """See `pressroom/prompts.py`."""
    train_on: Literal["all", "answer"] | None = None
    """What carries loss: all after BOS, or the description and eos. Null: the format's own."""

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
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
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

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Micro-steps of one optimizer step on each rank.

        Raises:
            UserError: The global batch does not divide over the ranks.
        """
        steps, rest = divmod(self.global_batch_size, self.micro_batch_size * world_size)
        if rest or not steps:
            fits = [
                str(n)
                for n in range(1, self.global_batch_size // self.micro_batch_size + 1)
                if self.global_batch_size % (self.micro_batch_size * n) == 0
            ]
            raise UserError(
                f"batch.global_batch_size: {self.global_batch_size} rows in micro-batches of "
                f"{self.micro_batch_size} do not divide over {world_size} ranks; "
                f"world sizes that fit: {', '.join(fits)}"
            )
        return steps

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

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Uses `accelerate_configs/STRATEGY.yaml`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Memory(Section):
    """What is traded for memory."""

    precision: Precision = "bf16"
    """What the model computes in; the adapters are updated in fp32 (under fsdp in bf16)."""
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
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token each time."""


def _one_compute_dtype(quantization: Quantization | None, memory: Memory) -> Problems:
    """Half precision computes in one dtype; a second would be cast at every linear layer."""
    dtype = DTYPES[memory.precision]
    if quantization and memory.precision != "fp32" and quantization.compute_dtype != dtype:
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
    if parallel.strategy == "fsdp" and quantization and quantization.storage_dtype != dtype:
        yield (
            "quantization.storage_dtype",
            f"{quantization.storage_dtype} would not be sharded by fsdp: must be {dtype}, the "
            "dtype of the rest",
        )


def _fsdp_optimizer(optimizer: Optimizer, parallel: Parallel) -> Problems:
    """Optimizers of bitsandbytes cannot save a sharded state."""
    if parallel.strategy == "fsdp" and optimizer.name.startswith("paged_"):
        yield "optimizer.name", f"{optimizer.name} fails under fsdp: use adamw_torch_fused"


def _fsdp_precision(parallel: Parallel, memory: Memory) -> Problems:
    """The fp16 gradient scaler has not been tried with sharded gradients."""
    if parallel.strategy == "fsdp" and memory.precision == "fp16":
        yield "memory.precision", "fp16 is not supported under fsdp: use bf16 or fp32"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One run, from articles to generated text."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names `data/NAME-HASH` and `runs/NAME/`."""
    seed: Annotated[int, Field(ge=0)] = 17
    """Of the adapters' start, the order of rows and dropout; the held-out split never changes."""
    model: Model
    data: Data
    prompt: Prompt = Field(default_factory=Prompt)
    sequence_length: Annotated[int, Field(ge=16)]
    """Tokens of a packed row."""
    quantization: Quantization | None = Field(default_factory=Quantization)
    lora: Lora = Field(default_factory=Lora)
    batch: Batch
    optimizer: Optimizer
    parallel: Parallel = Field(default_factory=Parallel)
    memory: Memory = Field(default_factory=Memory)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    generation: Generation = Field(default_factory=Generation)

    other_names: ClassVar[dict[str, str]] = {
        "rank": "r",
        "lora_r": "r",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "lr": "learning_rate",
        "batch_size": "micro_batch_size",
        "per_device_train_batch_size": "micro_batch_size",
        "max_steps": "num_steps",
        "num_train_epochs": "num_epochs",
        "epochs": "num_epochs",
        "max_length": "sequence_length",
        "max_seq_length": "sequence_length",
        "sequence_len": "sequence_length",
        "gradient_checkpointing": "activation_checkpointing",
        "base_model": "base",
        "optim": "name",
    }
    rules: ClassVar[tuple[Callable[..., Problems], ...]] = (
        _one_compute_dtype,
        _fsdp_shards_codes,
        _fsdp_optimizer,
        _fsdp_precision,
    )

    @classmethod
    def load(cls, name: str, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe file, or a shipped recipe by its name (`demo`, `llama2_7b`).

        Raises:
            UserError: With every problem of the recipe at once.
        """
        return strict_yaml.load(cls, _find(name), overrides)

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe as plain JSON values, defaults included."""
        plain: dict[str, Any] = TypeAdapter(Recipe).dump_python(self, mode="json")
        return plain


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = {
        Path(file.name).stem: Path(str(file))
        for file in resources.files("train.recipes").iterdir()
        if file.name.endswith(".yaml")
    }
    if path.name == name and path.stem in shipped:
        return shipped[path.stem]
    close = difflib.get_close_matches(path.stem, shipped, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{name}: no such file, and no shipped recipe of that name "
        f"({', '.join(sorted(shipped))}){hint}"
    )
