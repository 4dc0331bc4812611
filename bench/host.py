"""What the host does for a GPU: rows into batches, kernels into a queue, a run's start; on a CPU.

    OMP_NUM_THREADS=1 python bench/host.py --rows bench/results.jsonl

`loader`: tokens/s of a rank's loader and collator on one core, beside what eight ranks take.
`step`: seconds of a layer and of a step where tensors are too small to count.
`start`: seconds from the launch to the end of step 1, by part (`host_start.py`).
"""

import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import torch
from host_start import PARTS
from overhead import Times
from random_model import config_of, random_base
from random_rows import random_rows
from record import append, facts
from stacks import Variant, bench_recipe, build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data_prep.prepare import prepare
from launch.command import Node, train_command
from pressroom.console import entry, log, say
from pressroom.geometry import SIZES, Geometry
from pressroom.planner.choice import Gpus, option
from pressroom.planner.gpu_kinds import kind_of
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import data
from train.steps import Collator, Steps, attending

RANKS, RATE = 8, 20_000
"""Ranks of a node, and the tokens/s that each may come to want."""
ROW, ARTICLE = 2048, 811
TINY = Geometry(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    num_heads=1,
    num_kv_heads=1,
    head_dim=64,
    max_positions=512,
)
DEPTHS, TOKENS, WARMUP, STEPS = (2, 10), 64, 5, 25


def loader(num_rows: int = 4000) -> dict[str, Any]:
    """Tokens/s of what a rank's loader does: memory-mapped rows, collated, told their articles."""
    folder = Path(tempfile.mkdtemp())
    random_rows(512, ROW, ARTICLE, 32_000).save_to_disk(str(folder / "train"))
    rows = data.load_rows(folder, "train")
    micro = 4
    variant = Variant("pressroom", micro)
    recipe = bench_recipe(variant, TINY, ROW, num_rows // micro, RANKS, folder)
    collator = Collator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
    rank = SimpleNamespace(process_index=3, world_size=RANKS, dataloader_pin_memory=False)
    steps = SimpleNamespace(train_dataset=rows, recipe=recipe, args=rank, data_collator=collator)
    batches: Iterable[Any] = Steps.get_train_dataloader(cast(Any, steps))
    tokens, seconds = 0, []
    start = time.process_time()
    for batch in batches:
        attending(batch, "packed_varlen")
        tokens = batch["input_ids"].numel()
        seconds.append((time.process_time() - start) / tokens)
        start = time.process_time()
    rate = 1 / statistics.median(seconds[10:])
    return {
        "tokens_per_core_second": round(rate),
        "micro_batch": micro,
        "ratio_to_a_rank": round(rate / RATE, 1),
        "ratio_to_a_node": round(rate / RATE / RANKS, 2),
    }


class Timed(TrainerCallback):
    """Times each step."""

    def __init__(self) -> None:
        self.times = Times()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step begins: its rows are there."""
        self.times.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It is over."""
        self.times.stop()


def step(save: str) -> dict[str, Any]:
    """Milliseconds of a core for one layer, and for what a step has once, by two depths.

    Beside them what an H200 is predicted to take for a layer of 7B and 8,192 tokens: while that is
    more, the host is ahead of the GPU.
    """
    median = {}
    for depth in DEPTHS:
        shape = Geometry(**{**vars(TINY), "num_layers": depth})
        rows = random_rows(16, TOKENS, TOKENS, shape.vocab_size)
        base = random_base(shape, torch.device("cpu"))
        attention = "dense" if save == "plain" else "auto"
        variant = Variant("pressroom", 1, "none", attention, save)
        trainer = build(variant, base, rows, shape, WARMUP + STEPS)
        timed = Timed()
        trainer.add_callback(timed)
        trainer.train()
        median[depth] = statistics.median(timed.times.cores[WARMUP:])
    few, many = DEPTHS
    layer = (median[many] - median[few]) / (many - few)
    recipe = bench_recipe(
        Variant("pressroom", 4, "none", "auto", save), SIZES["7b"], ROW, 1, 1, Path(_folder())
    )
    planned = option(recipe, SIZES["7b"], Gpus(kind=kind_of("h200"))).plan
    gpu = planned.step.total / SIZES["7b"].num_layers
    return {
        "save": save,
        "layer_ms": round(1e3 * layer, 3),
        "step_ms": round(1e3 * (median[few] - few * layer), 3),
        "predicted_gpu_layer_ms": round(1e3 * gpu, 3),
        "ratio_to_gpu": round(layer / gpu, 3),
    }


def start(repeats: int) -> dict[str, Any]:
    """Seconds from the launch of one rank to the end of its first step, by part."""
    home = Path(_folder())
    os.environ["PRESSROOM_HOME"] = str(home)
    _write_model(home / "model")
    drawn = random.Random(0)
    articles = [
        {
            "title": f"City opens bridge {i}",
            "description": " ".join(f"word{drawn.randrange(1000)}" for _ in range(20)),
            "url": f"https://news.example/{i}",
            "published_at": "2026-01-01T00:00:00+00:00",
        }
        for i in range(60)
    ]
    (home / "articles.jsonl").write_text("".join(json.dumps(a) + "\n" for a in articles))
    text = {
        "name": "start",
        "model": {"base": str(home / "model")},
        "data": {"articles": [str(home / "articles.jsonl")], "held_out": 0.3},
        "sequence_length": 128,
        "batch": {"global_batch_size": 1, "micro_batch_size": 1},
        "optimizer": {"num_steps": 1},
        "tracking": {"trackers": []},
    }
    path = home / "recipe.yaml"
    path.write_text(json.dumps(text))
    recipe = Recipe.load(str(path))
    dataset = prepare(recipe)
    parts = []
    for _ in range(repeats + 1):
        run = RunDir.create(recipe)
        command = train_command(recipe, run, dataset, Node(num_gpus=0, num_cpus=1))
        place = command.index("train.sft")
        command[place - 1 : place + 1] = [str(Path(__file__).with_name("host_start.py"))]
        told = home / "parts.json"
        environment = {**os.environ, "LAUNCHED": repr(time.time()), "TOLD": str(told)}
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        parts.append(json.loads(told.read_text()))
        log.info("%s", parts[-1])
    medians = {
        name: round(statistics.median(p[name] for p in parts[1:] or parts), 2) for name in PARTS
    }
    return {"seconds": medians, "total_seconds": round(sum(medians.values()), 2)}


def _folder() -> str:
    return tempfile.mkdtemp()


def _write_model(folder: Path) -> None:
    """A tiny Llama in bf16 and a byte-level tokenizer."""
    LlamaForCausalLM(config_of(TINY)).bfloat16().save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the city and the river"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    words = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(words))


ITEMS = ("loader", "step", "start")


@click.command()
@click.option("--item", "items", multiple=True, type=click.Choice(ITEMS), default=ITEMS)
@click.option("--repeats", type=int, default=5, show_default=True, help="Starts, after one more.")
@click.option("--rows", "path", default="build/host.jsonl", show_default=True, type=Path)
def main(items: tuple[str, ...], repeats: int, path: Path) -> None:
    """What the host does for a GPU, measured on a CPU."""
    torch.set_num_threads(1)
    for item in items:
        found = [loader()] if item == "loader" else []
        found = [step("plain"), step("all")] if item == "step" else found
        for row in found or [start(repeats)]:
            load = [round(number, 1) for number in os.getloadavg()]
            append(path, {"bench": "host", **facts(), "item": item, **row, "load": load})
            say(f"{item:8}{json.dumps(row)}")


if __name__ == "__main__":
    entry(main)
