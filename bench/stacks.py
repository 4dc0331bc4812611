"""The trainers that are compared: Pressroom's, and the plain stack as its documentation shows it.

Each takes the same frozen base and rows and gives a trainer that is ready to train; `restore`
gives the base back as it was.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer

from pressroom.geometry import Geometry
from pressroom.nn.nf4 import compute_in
from pressroom.planner.fits import resolve
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.train_sections import DTYPES, Checkpointing, Precision
from train import model as adapters
from train import trainer
from train.fast import slow_down
from train.meter import Meter
from train.preempt import Preemption
from train.summary import gpus_of_ranks

LORA_R = 16
STACKS = ("pressroom", "trl")


@dataclass(frozen=True)
class Variant:
    """One way to train: `STACK:MICRO_BATCH[:CHECKPOINTING[:ATTENTION[:SAVE]]]`.

    For Pressroom, the last two are a recipe's `speed.attention` and `speed.save`.
    """

    stack: str
    micro_batch_size: int
    checkpointing: str = "full"
    attention: str = ""
    save: str = ""

    def __post_init__(self) -> None:
        ours = self.stack == "pressroom"
        object.__setattr__(self, "attention", self.attention or ("auto" if ours else "sdpa"))
        object.__setattr__(self, "save", self.save or ("auto" if ours else "plain"))

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read a variant.

        Raises:
            ValueError: Says what is wrong.
        """
        stack, _, rest = text.partition(":")
        fields = rest.split(":")
        if stack not in STACKS or not fields[0].isdigit() or len(fields) > 4:
            raise ValueError(f"{text}: not STACK:MICRO_BATCH[:CHECKPOINTING[:ATTENTION[:SAVE]]]")
        if len(fields) > 1 and fields[1] not in get_args(Checkpointing):
            raise ValueError(f"{text}: checkpointing is none, selective or full, not {fields[1]}")
        return cls(stack, int(fields[0]), *fields[1:])

    def __str__(self) -> str:
        text = f"{self.stack}:{self.micro_batch_size}:{self.checkpointing}:{self.attention}"
        is_default = self.save == Variant(self.stack, 1).save
        return text if is_default else f"{text}:{self.save}"


def build(
    variant: Variant,
    base: PreTrainedModel,
    rows: Dataset,
    geometry: Geometry,
    num_steps: int,
    accumulation: int = 1,
    precision: Precision = "bf16",
) -> Any:
    """A trainer of `num_steps` steps, each of `accumulation` micro-batches."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # a precision stays for the life of a process otherwise
    base.set_attn_implementation("sdpa" if variant.stack == "pressroom" else variant.attention)
    make = _pressroom if variant.stack == "pressroom" else _plain
    compute_in(base, getattr(torch, DTYPES[precision]))
    place = Path(tempfile.mkdtemp())
    made = make(variant, base, rows, geometry, num_steps, accumulation, precision, place)
    begin(made.model)
    return made


def begin(model: torch.nn.Module) -> None:
    """Draw the adapters' B: zeros would leave A without gradients, and run faster."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 1e-3)


def restore(built: Any, base: PreTrainedModel) -> None:
    """Take the adapters off, and what the trainer has switched on."""
    slow_down(built.model)
    built.model.unload()
    base.gradient_checkpointing_disable()
    base.disable_input_require_grads()
    base.requires_grad_(False)
    base.train(False)


def _pressroom(
    variant: Variant,
    base: PreTrainedModel,
    rows: Dataset,
    geometry: Geometry,
    num_steps: int,
    accumulation: int,
    precision: Precision,
    folder: Path,
) -> Any:
    length = max(sum(row) for row in rows["seq_lengths"])
    recipe = bench_recipe(variant, geometry, length, num_steps, accumulation, folder, precision)
    run = RunDir(folder)
    arguments = trainer.training_arguments(recipe, run, 1, len(rows))
    arguments.save_strategy = "no"
    model = adapters.with_adapters(base, recipe)
    meter = Meter(run, recipe, geometry, gpus_of_ranks(PartialState()))
    both = {"train": rows, "held_out": rows}
    return trainer.build(
        recipe, run, arguments, model, _tokenizer(folder), both, meter, Preemption()
    )


def bench_recipe(
    variant: Variant,
    geometry: Geometry,
    sequence_length: int,
    num_steps: int,
    accumulation: int,
    folder: Path,
    precision: Precision = "bf16",
) -> Recipe:
    """The recipe of a measurement, its speed as the planner chooses it for this machine."""
    text = {
        "name": "bench",
        "model": {"base": "."},
        "data": {"articles": ["none.jsonl"]},
        "sequence_length": sequence_length,
        "lora": {"r": LORA_R, "alpha": 2 * LORA_R},
        "batch": {
            "global_batch_size": variant.micro_batch_size * accumulation,
            "micro_batch_size": variant.micro_batch_size,
        },
        "optimizer": {"num_steps": num_steps},
        "quantization": {"compute_dtype": DTYPES[precision]},
        "memory": {"activation_checkpointing": variant.checkpointing, "precision": precision},
        "speed": {"attention": variant.attention, "save": variant.save},
    }
    (folder / "recipe.yaml").write_text(json.dumps(text))
    recipe = Recipe.load(str(folder / "recipe.yaml"))
    return resolve(recipe, geometry, gpus_of_ranks(PartialState()))[0]


def _plain(
    variant: Variant,
    base: PreTrainedModel,
    rows: Dataset,
    geometry: Geometry,
    num_steps: int,
    accumulation: int,
    precision: Precision,
    folder: Path,
) -> Any:
    """TRL's QLoRA as its documentation shows it: its defaults, but for rows that are packed."""
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=variant.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=variant.checkpointing == "full",
        learning_rate=2e-4,
        bf16=precision == "bf16",
        packing=True,
        max_length=max(sum(row) for row in rows["seq_lengths"]),
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=min(10, num_steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(_tokenizer(folder) / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.eos_token = "</s>"
    made = SFTTrainer(
        model=base,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=LORA_R, lora_alpha=2 * LORA_R, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    made.remove_callback(PrinterCallback)
    return made


def _tokenizer(folder: Path) -> Path:
    """Nothing is tokenized here; the trainers ask for one all the same."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
