"""The recipe: everything that decides what a run makes, and nothing about where it runs.

A recipe is one YAML file (`train/recipes/` has those that are shipped), read by `Recipe.load`.
Each section (`pressroom/sections.py`, `pressroom/train_sections.py`) checks itself; rules that
compare two are in `pressroom/rules.py`. Knows no torch.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pressroom import strict_yaml
from pressroom.console import UserError
from pressroom.geometry import Geometry
from pressroom.rules import RULES
from pressroom.sections import STRICT, Data, Evaluation, Generation, Model, Problems, Prompt
from pressroom.train_sections import (
    Batch,
    Checkpoint,
    Lora,
    Memory,
    Optimizer,
    Parallel,
    Quantization,
    Speed,
    SpeedOrWord,
    Tracking,
)

AUTO_KEYS = ("parallel.strategy", "memory.activation_checkpointing", "batch.micro_batch_size")
"""What may be `auto`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One run, from articles to generated text."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names `data/NAME-HASH` and `runs/NAME/`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
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
    speed: SpeedOrWord = Field(default_factory=Speed)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    tracking: Tracking = Field(default_factory=Tracking)
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
        "gradient_accumulation_steps": "global_batch_size",
        "load_in_4bit": "quantization",
        "bf16": "precision",
        "fp16": "precision",
        "report_to": "trackers",
        "save_steps": "checkpoint",
        "save_total_limit": "keep_last",
        "eval_steps": "evaluation",
        "early_stopping_patience": "early_stopping",
        "lr_scheduler_type": "schedule",
        "lr_scheduler": "schedule",
        "deepspeed": "strategy",
        "fsdp": "strategy",
        "datasets": "articles",
        "val_set_size": "held_out",
        "prompt_template": "format",
    }
    rules: ClassVar[tuple[Callable[..., Problems], ...]] = RULES

    @classmethod
    def load(cls, name: str, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe file, or a shipped recipe by its name (`demo`, `llama2_7b`).

        Raises:
            UserError: With every problem of the recipe at once.
        """
        return strict_yaml.load(cls, _find(name), overrides)

    def require_fit(self, geometry: Geometry) -> None:
        """Hold the recipe against its model.

        Raises:
            UserError: Naming every key that the model cannot do.
        """
        problems = []
        if self.sequence_length > geometry.max_positions:
            problems.append(
                f"sequence_length: {self.sequence_length:,} tokens, and the model knows positions "
                f"up to {geometry.max_positions:,}"
            )
        layers = geometry.linear_shapes
        targets = self.lora.target_modules
        for name in () if isinstance(targets, str) else targets:
            if name not in layers:
                close = difflib.get_close_matches(name, layers, n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]}?" if close else f" ({', '.join(layers)})"
                problems.append(
                    f"lora.target_modules: {name} is no linear layer of a decoder layer{hint}"
                )
        if problems:
            raise UserError("\n".join(problems))

    def num_steps(self, num_rows: int) -> int:
        """Optimizer steps of a run: as many as the recipe says, or as its epochs take."""
        if self.optimizer.num_steps is not None:
            return self.optimizer.num_steps
        assert self.optimizer.num_epochs is not None
        return math.ceil(self.optimizer.num_epochs * num_rows / self.batch.global_batch_size)

    def value(self, key: str) -> Any:
        """What stands at a dotted key: `batch.micro_batch_size`."""
        return attrgetter(key)(self)

    @property
    def autos(self) -> tuple[str, ...]:
        """The keys that the planner still has to fill in."""
        return tuple(key for key in AUTO_KEYS if self.value(key) == "auto")

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) of each rule between sections that does not hold."""
        for rule in self.rules:
            yield from rule(**{n: getattr(self, n) for n in inspect.signature(rule).parameters})

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
