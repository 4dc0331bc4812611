"""What the trainer costs beside a bare PyTorch loop: the same model, loss and rows, in one run.

    python bench/overhead.py

After each step of the trainer the bare loop makes one of its own, so that whatever else the
machine does meets both alike; the figure is the ratio of the medians. The bare loop is what one
would write by hand: rows collated, forward, loss, backward, clipping, AdamW, schedule, and the
loss read once a step. `--loss torch` gives it PyTorch's cross entropy over whole logits.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from random_model import random_base
from random_rows import random_rows
from record import append, facts
from stacks import Variant, begin, bench_recipe, build
from transformers import TrainerCallback, get_cosine_schedule_with_warmup
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pressroom.console import UserError, entry, log, say
from pressroom.geometry import Geometry
from train.loss import score_in_forward
from train.model import with_adapters
from train.speed import quicken
from train.steps import Collator, attending

GEOMETRY = Geometry(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=512,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
)
ROW, ARTICLE = 512, 150
ACCUMULATION = 2
WARMUP = 4


def torch_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Summed NLL by PyTorch's cross entropy over whole logits, as most loops are written."""
    output = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    )
    logits = output.logits[0, batch["trained"]].float()
    return torch.nn.functional.cross_entropy(logits, batch["targets"], reduction="sum")


def trainers_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Summed NLL as the trainer computes it."""
    attention = model.get_base_model().config._attn_implementation
    loss: torch.Tensor = model(**attending(batch, attention), use_cache=False).loss
    return loss


LOSSES = {"ours": trainers_loss, "torch": torch_loss}


def bare_steps(variant: Variant, rows: Any, num_steps: int, loss_of: Any) -> Iterator[float]:
    """Train without a trainer; gives the loss of each step."""
    folder = Path(tempfile.mkdtemp())
    recipe = bench_recipe(variant, GEOMETRY, ROW, num_steps, ACCUMULATION, folder)
    base = random_base(GEOMETRY, torch.device("cpu"))
    model = with_adapters(base, recipe)
    score_in_forward(base, lambda weight: nullcontext())
    quicken(model, recipe, torch.device("cpu"))
    begin(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * num_steps), num_steps)
    collate = Collator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
    size = variant.micro_batch_size
    for step in range(num_steps):
        first = step * size * ACCUMULATION
        batches = [
            collate([rows[(first + m * size + i) % len(rows)] for i in range(size)])
            for m in range(ACCUMULATION)
        ]
        count = sum(len(batch["targets"]) for batch in batches)
        total = torch.zeros(())
        for batch in batches:
            loss = loss_of(model, batch) / count
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, recipe.optimizer.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield float(total)


@dataclass
class Times:
    """Of each step: seconds on the clock, and seconds of this process on a core."""

    wall: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    _start: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """A step begins."""
        self._start = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """A step is over."""
        self.wall.append(time.perf_counter() - self._start[0])
        self.cores.append(time.process_time() - self._start[1])


class SideBySide(TrainerCallback):
    """Lets the bare loop make a step after each of the trainer's, and times both."""

    def __init__(self, bare: Iterator[float]) -> None:
        self._bare, self._bare_loss = bare, 0.0
        self.trainer, self.bare = Times(), Times()
        self.losses: list[tuple[float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step has nothing before it."""
        self.trainer.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A trainer's step: from the end of the bare one before it, writing its row included."""
        self.trainer.stop()
        self.bare.start()
        self._bare_loss = next(self._bare)
        self.bare.stop()
        self.trainer.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the losses of both: they train the same."""
        if logs and "loss" in logs:
            self.losses.append((logs["loss"], self._bare_loss))


def measure(variant: Variant, loss: str, num_steps: int, micro_rows: int = 64) -> dict[str, Any]:
    """Seconds of a step of both, and their ratio."""
    rows = random_rows(micro_rows, ROW, ARTICLE, GEOMETRY.vocab_size)
    base = random_base(GEOMETRY, torch.device("cpu"))
    trainer = build(variant, base, rows, GEOMETRY, num_steps, ACCUMULATION)
    both = SideBySide(bare_steps(variant, rows, num_steps, LOSSES[loss]))
    trainer.add_callback(both)
    trainer.train()
    if any(abs(a - b) > 0.2 for a, b in both.losses):
        raise UserError(f"the losses differ: {both.losses}")
    tokens = variant.micro_batch_size * ACCUMULATION * ROW
    wall, bare_wall = _median(both.trainer.wall), _median(both.bare.wall)
    return {
        "variant": str(variant),
        "bare_loss": loss,
        "threads": torch.get_num_threads(),
        "steps": num_steps - WARMUP,
        "step_seconds": round(wall, 5),
        "bare_step_seconds": round(bare_wall, 5),
        "tokens_per_second": round(tokens / wall, 1),
        "bare_tokens_per_second": round(tokens / bare_wall, 1),
        "ratio": round(bare_wall / wall, 4),
        "ratio_of_core_seconds": round(_median(both.bare.cores) / _median(both.trainer.cores), 4),
        "losses": [round(loss, 4) for loss in both.losses[-1]],
    }


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds[WARMUP:])


@click.command()
@click.option("--variant", "variants", multiple=True, default=("pressroom:1:none", "trl:1:none"))
@click.option("--loss", "losses", multiple=True, type=click.Choice(list(LOSSES)))
@click.option("--steps", type=int, default=40, show_default=True)
@click.option("--rows", "path", default="build/overhead.jsonl", show_default=True, type=Path)
def main(variants: tuple[str, ...], losses: tuple[str, ...], steps: int, path: Path) -> None:
    """Tokens/s of a trainer as a share of a bare loop's."""
    lines = []
    for text in variants:
        for loss in losses or LOSSES:
            row = measure(Variant.parse(text), loss, steps)
            append(path, {"bench": "overhead", **facts(), **row})
            line = f"{row['variant']:28}{loss:8}{row['ratio']:.3f} of the bare loop's tokens/s"
            cores = f"{row['ratio_of_core_seconds']:.3f} by time on a core"
            lines.append(f"{line}, {cores}; {row['tokens_per_second']:,.0f} tokens/s")
            log.info("%s", lines[-1])
    say("\n".join(lines))


if __name__ == "__main__":
    entry(main)
