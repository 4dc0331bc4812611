"""Tokens/s of Pressroom's trainer beside the plain stack: one model, one run, the same rows.

    python bench/train_gpu.py --geometry 7b --variant trl:4 --variant pressroom:8:none

A variant is STACK:MICRO_BATCH[:CHECKPOINTING[:ATTENTION[:SAVE]]], its micro-batch in packed rows.
Weights are random. Each variant is bounded in time, and its JSON row is written at once, so that a
run cut short loses nothing. `--geometry tiny` runs on a CPU in seconds.
"""

import gc
import math
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch
from breakdown import shares
from foretold import flops_per_token, predicted, require_possible
from geometries import GEOMETRIES
from random_model import random_base
from random_rows import random_rows
from record import append, facts
from stacks import Variant, build, restore
from transformers import TrainerCallback

from pressroom.console import UserError, entry, log, say
from pressroom.geometry import Geometry
from pressroom.train_sections import Save

DEFAULTS = {
    "tiny": ("trl:1", "trl:2", "pressroom:1:full", "pressroom:2:none"),
    "7b": (
        *("pressroom:8:none", "pressroom:8:none:auto:plain", "pressroom:8:full"),
        *("trl:1", "trl:2", "trl:4", "trl:8"),
    ),
    "13b": ("pressroom:4:none", "pressroom:8:full", "trl:1", "trl:2", "trl:4"),
    "70b": (
        *("pressroom:2:none", "pressroom:3:none:auto:all", "pressroom:6:none:auto:less"),
        *("pressroom:8:full", "trl:1", "trl:2", "trl:4"),
    ),
}
"""What matters most comes first: a call that is cut loses the last."""


class Clock(TrainerCallback):
    """Times whole steps, from the end of one to the end of the next; then profiles two.

    Args:
        warmup: Steps before the first that counts.
        steps: Steps that count, fewer where `seconds` run out.
        seconds: From the first step on.
        profiled: Steps under the profiler, behind those that count.
    """

    def __init__(self, warmup: int, steps: int, seconds: float, profiled: int) -> None:
        self._warmup, self._steps, self._limit = warmup, steps, seconds
        self._profiled = profiled
        self._marks: list[Any] = []
        self._start = time.monotonic()
        self._profiler: Any = None
        self.losses: list[float] = []
        self.shares: dict[str, float] | None = None

    @property
    def total(self) -> int:
        """Steps to train, all in all."""
        return self._warmup + self._steps + self._profiled

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count the time."""
        self._start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the end of a step; go over to profiling, or stop, when it is time."""
        if self._profiler is None:
            self._marks.append(_mark())
        late = time.monotonic() - self._start > self._limit
        done = len(self._marks) > self._warmup + (2 if late else self._steps)
        if self._profiler is None and (done or len(self._marks) == self._warmup + self._steps):
            if not self._profiled or late:
                control.should_training_stop = True
                return
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        elif self._profiler is not None and state.global_step >= self.total:
            self._profiler.stop()
            self.shares = shares(self._profiler, cuda=torch.cuda.is_available())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the losses: a bench of a model that computes nonsense measures nothing."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def seconds(self) -> list[float]:
        """Of each step that counts."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            pairs = zip(self._marks, self._marks[1:], strict=False)
            every = [a.elapsed_time(b) / 1000 for a, b in pairs]
        else:
            every = [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return every[max(self._warmup - 1, 0) :]


def _mark() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def sustained_tflops(device: torch.device) -> float:
    """What a large bf16 matrix product reaches here: what MFU and HFU are shares of."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e12


def trained(
    variant: Variant, base: Any, geometry: Geometry, rows: Any, clock: Clock
) -> dict[str, Any]:
    """Train a variant for some steps; empty, or why it could not be."""
    cuda = torch.cuda.is_available()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = None
    try:
        trainer = build(variant, base, rows, geometry, clock.total)
        trainer.add_callback(clock)
        trainer.train()
        return {}
    except torch.OutOfMemoryError as error:
        return {"error": "out of memory", "detail": str(error).splitlines()[0]}
    finally:
        if trainer is not None:
            restore(trainer, base)


def _figures(
    variant: Variant, geometry: Geometry, rows: Any, clock: Clock, peak: float, save: Save
) -> dict[str, Any]:
    seconds = clock.seconds()
    lengths = [n for row in rows["seq_lengths"] for n in row]
    tokens = variant.micro_batch_size * sum(lengths) / len(rows)
    rate = tokens / statistics.median(seconds)
    flops = flops_per_token(geometry, lengths, variant.checkpointing, save)
    expected = math.log(geometry.vocab_size)
    if not all(abs(loss - expected) < 1.5 for loss in clock.losses):
        return {"error": f"losses {clock.losses} are not near {expected:.2f}"}
    cuda = torch.cuda.is_available()
    return {
        "tokens_per_step": round(tokens),
        "steps": len(seconds),
        "step_seconds": round(statistics.median(seconds), 5),
        "spread": round((max(seconds) - min(seconds)) / statistics.median(seconds), 3),
        "tokens_per_second": round(rate, 1),
        "mfu": round(rate * flops["model"] / peak / 1e12, 4),
        "hfu": round(rate * flops["executed"] / peak / 1e12, 4),
        "peak_memory_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "loss": round(clock.losses[0], 4),
        "time_by_kernel": clock.shares,
    }


@click.command()
@click.option("--geometry", "size", type=click.Choice(list(GEOMETRIES)), default="tiny")
@click.option("--variant", "variants", multiple=True, help="Default: a set for the geometry.")
@click.option("--sequence-length", type=int, default=2048, help="Tokens of a packed row.")
@click.option("--article-tokens", type=float, default=811.0, help="Mean length of an article.")
@click.option("--steps", type=int, default=10)
@click.option("--warmup", type=int, default=3)
@click.option("--seconds", type=float, default=60.0, help="At most, for the steps of a variant.")
@click.option("--profile", is_flag=True, help="Two more steps each: time by class of kernel.")
@click.option("--rows", "path", default="build/train_gpu.jsonl", show_default=True, type=Path)
def main(
    size: str,
    variants: tuple[str, ...],
    sequence_length: int,
    article_tokens: float,
    steps: int,
    warmup: int,
    seconds: float,
    profile: bool,
    path: Path,
) -> None:
    """Tokens/s of Pressroom's trainer beside the plain stack."""
    try:
        chosen = [Variant.parse(text) for text in variants or DEFAULTS[size]]
    except ValueError as error:
        raise UserError(str(error)) from None
    geometry = GEOMETRIES[size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_possible(chosen, geometry, sequence_length, device)
    peak = sustained_tflops(device)
    start = time.monotonic()
    base = random_base(geometry, device)
    log.info(
        "%s: built in %.0f s; a GEMM reaches %.3g TFLOP/s", size, time.monotonic() - start, peak
    )
    count = max(v.micro_batch_size for v in chosen) * 4
    rows = random_rows(count, sequence_length, article_tokens, geometry.vocab_size)
    common = {
        "bench": "train_gpu",
        "geometry": size,
        "sequence_length": sequence_length,
        "article_tokens": article_tokens,
        "sustained_tflops": round(peak, 3),
        **facts(),
    }
    lines = []
    for variant in chosen:
        clock = Clock(warmup, steps, seconds, 2 if profile else 0)
        foretold = predicted(variant, geometry, sequence_length)
        save = foretold.get("save", "plain")
        measured = trained(variant, base, geometry, rows, clock)
        measured = measured or _figures(variant, geometry, rows, clock, peak, save)
        row = {"variant": str(variant), **measured, **foretold}
        append(path, {**common, **row})
        lines.append(_line(row))
        log.info("%s", lines[-1])
    say("\n".join(lines))


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['variant']:32}{row['error']}"
    memory = f"{row['peak_memory_gib']} GiB" if row["peak_memory_gib"] is not None else ""
    return (
        f"{row['variant']:32}{row['tokens_per_second']:>12,.1f} tokens/s  "
        f"MFU {row['mfu']:.1%}  HFU {row['hfu']:.1%}  {memory}"
    )


if __name__ == "__main__":
    entry(main)
