"""Tokens/s of the fast path beside plain TRL + PEFT, step by step in turn, on a CPU.

    OMP_NUM_THREADS=1 python bench/side_by_side.py --precision bf16 --rows bench/results.jsonl

Each variant trains in a process of its own, on the same model and rows, and waits after each step
until the others have made theirs: whatever else the machine does meets all alike. What counts is
how many times as long the first variant took for the same step, the median over all steps.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast, get_args

import click
import torch
from random_model import random_base
from random_rows import random_rows
from record import append, facts
from stacks import Variant, build
from transformers import TrainerCallback

from pressroom.console import UserError, entry, log, say, set_up_logging
from pressroom.geometry import Geometry
from pressroom.train_sections import Precision

ROW, ARTICLE, WARMUP = 512, 150, 3
VARIANTS = ("trl:1:none", "pressroom:1:none:dense:plain", "pressroom:1:none", "trl:1:none")
"""The first is what others are held against; the last, the same once more, shows the noise."""
Change = Callable[[Any], None]
Step = tuple[float, float, float]
"""Seconds on the clock and on a core, and the loss."""


def geometry(hidden: int, layers: int) -> Geometry:
    """A Llama of that width, its MLP 2.75 times as wide, its heads of 64."""
    return Geometry(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_layers=layers,
        num_heads=hidden // 64,
        num_kv_heads=hidden // 64,
        head_dim=64,
    )


class InTurn(TrainerCallback):
    """Makes a step when it is told to, and tells how long it took: on the clock, and on a core."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._start = (0.0, 0.0)
        self._loss = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the first turn."""
        self._wait()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the loss."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a turn: what a trainer does behind its callbacks counts in the next."""
        took = (time.perf_counter() - self._start[0], time.process_time() - self._start[1])
        self._pipe.send((*took, self._loss))
        self._wait()

    def _wait(self) -> None:
        self._pipe.recv()
        self._start = (time.perf_counter(), time.process_time())


def trained(
    text: str,
    shape: Geometry,
    precision: Precision,
    steps: int,
    pipe: Connection,
    change: Change | None,
) -> None:
    """Train one variant in turns; at the top of a module, so that a process finds it."""
    set_up_logging()
    torch.set_num_threads(1)
    variant = Variant.parse(text)
    rows = random_rows(16 * variant.micro_batch_size, ROW, ARTICLE, shape.vocab_size)
    base = random_base(shape, torch.device("cpu"))
    trainer = build(variant, base, rows, shape, steps, 1, precision)
    if change:
        change(trainer)
    trainer.args.logging_steps = 1
    trainer.add_callback(InTurn(pipe))
    trainer.train()


def measure(
    variants: Sequence[str],
    shape: Geometry,
    precision: Precision,
    steps: int,
    changes: Sequence[Change | None] = (),
) -> list[list[Step]]:
    """What each step of each variant took.

    Args:
        variants: As `Variant.parse` reads them.
        shape: Of the model.
        precision: What it computes in.
        steps: Of each.
        changes: What is done to each variant's trainer before it trains.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for text, change in zip_longest(variants, changes):
        mine, theirs = context.Pipe()
        options = (text, shape, precision, steps, theirs, change)
        process = context.Process(target=trained, args=options)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    told: list[list[Step]] = [[] for _ in variants]
    try:
        for step in range(steps):
            for pipe, row in zip(pipes, told, strict=True):
                pipe.send("go")
                row.append(pipe.recv())
            log.info("step %d: %s", step + 1, [f"{row[-1][0]:.2f} s" for row in told])
    except (EOFError, OSError):
        raise UserError("a variant's process has ended, see above") from None
    finally:
        for process in processes:
            process.terminate()
    return told


def ratios(first: Sequence[Step], own: Sequence[Step]) -> tuple[float, float]:
    """How many times as long the first took for the same step: by the clock, and on a core.

    >>> ratios([(2.0, 3.0, 8.3)] * 3, [(1.0, 2.0, 8.3)] * 3)
    (2.0, 1.5)
    """
    pairs = list(zip(first, own, strict=True))
    wall, core = (statistics.median(one[i] / other[i] for one, other in pairs) for i in (0, 1))
    return round(wall, 3), round(core, 3)


@click.command()
@click.option("--variant", "variants", multiple=True, default=VARIANTS, help="The plain one first.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="bf16")
@click.option("--hidden", type=int, default=512, show_default=True)
@click.option("--layers", type=int, default=6, show_default=True)
@click.option("--steps", type=int, default=20, show_default=True)
@click.option("--rows", "path", default="build/side_by_side.jsonl", show_default=True, type=Path)
def main(
    variants: tuple[str, ...], precision: str, hidden: int, layers: int, steps: int, path: Path
) -> None:
    """Tokens/s of variants, and their ratio to the first one's."""
    shape = geometry(hidden, layers)
    told = measure(variants, shape, cast(Precision, precision), steps + WARMUP)
    lines: list[str] = []
    for text, steps_of in zip(variants, told, strict=True):
        wall = statistics.median(step[0] for step in steps_of[WARMUP:])
        by_clock, by_core = ratios(told[0][WARMUP:], steps_of[WARMUP:])
        rate = Variant.parse(text).micro_batch_size * ROW / wall
        row = {
            "variant": str(Variant.parse(text)),
            "precision": precision,
            "hidden_size": hidden,
            "layers": layers,
            "sequence_length": ROW,
            "article_tokens": ARTICLE,
            "steps": steps,
            "step_seconds": round(wall, 4),
            "tokens_per_second": round(rate, 1),
            "ratio": by_clock,
            "ratio_of_core_seconds": by_core,
            "loss": round(steps_of[-1][2], 3),
            "load": [round(load, 1) for load in os.getloadavg()],
        }
        append(path, {"bench": "side_by_side", **facts(), **row})
        lines.append(
            f"{row['variant']:36} {precision}  {rate:8.1f} tokens/s  {row['ratio']:.2f} x, "
            f"{row['ratio_of_core_seconds']:.2f} x by time on a core; loss {row['loss']}"
        )
    say("\n".join(lines))


if __name__ == "__main__":
    entry(main)
