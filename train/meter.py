"""What a run does, step by step: metrics.jsonl and the progress line.

A row has the step's loss, learning rate, gradient norm, tokens, seconds, tokens/s/GPU, model
FLOP/s/GPU and peak memory; an evaluation adds a row with `eval_loss`. Only rank 0 writes. Knows
nothing of how steps are made.
"""

import contextlib
import json
import math
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from pressroom.console import Progress, UserError
from pressroom.files import publish_text
from pressroom.geometry import Geometry
from pressroom.run_dir import RunDir

FIGURES = (
    "tokens",
    "step_seconds",
    "tokens_per_second_per_gpu",
    "model_tflops_per_second_per_gpu",
    "peak_memory_gib",
)


class Meter(TrainerCallback):
    """Writes metrics.jsonl and shows progress.

    Args:
        run: Whose metrics these are.
        geometry: Of the base, for FLOPs.
        sequence_length: Tokens of a row: a bound on what attends to each other.
        world_size: Ranks that share the tokens of a step.
    """

    def __init__(
        self, run: RunDir, geometry: Geometry, sequence_length: int, world_size: int
    ) -> None:
        self._run = run
        self._flops_per_token = geometry.model_flops_per_token(sequence_length)
        self._world_size = world_size
        self._step_start = time.perf_counter()
        self._step_seconds = 0.0
        self.step_seconds: list[float] = []
        self.save_seconds: list[float] = []
        self.load_seconds = self.load_peak_gib = 0.0
        self._progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop rows of steps that will be done again; open the progress line.

        The base is loaded and divided by now: what follows is the peak of the steps.
        """
        self.load_seconds = time.time() - psutil.Process().create_time()
        self.load_peak_gib = _peak_memory_gib()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks left by loading would stay reserved
            torch.cuda.reset_peak_memory_stats()
        self._step_start = time.perf_counter()
        if not state.is_world_process_zero:
            return
        if self._run.metrics.is_file():
            publish_text(self._run.metrics, _rows_until(self._run.metrics, state.global_step))
        self._progress = Progress("train", state.max_steps, "step", done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock: a step is the fetching of its rows and all that follows."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._step_seconds = time.perf_counter() - self._step_start
        self.step_seconds.append(self._step_seconds)
        self._step_start = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock anew: evaluating does not count as a step."""
        self._step_start = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock anew: saving does not count as a step."""
        self._step_start = time.perf_counter()

    def measured(self) -> dict[str, float]:
        """What the run took on this rank, by the names that the planner's figures have."""
        warm = self.step_seconds[1:] or self.step_seconds
        found = {
            "load_seconds": self.load_seconds,
            "peak_at_load_gib": self.load_peak_gib,
            "peak_in_step_gib": _peak_memory_gib(),
            "step_seconds": statistics.median(warm) if warm else 0.0,
            "save_seconds": statistics.median(self.save_seconds) if self.save_seconds else 0.0,
        }
        return {name: round(value, 4) for name, value in found.items()}

    def figures(self, tokens: int) -> dict[str, float]:
        """What a step took.

        Args:
            tokens: Of the step, over all ranks.

        Returns:
            `FIGURES` by name, for metrics.jsonl and for trackers.
        """
        per_gpu = tokens / self._step_seconds / self._world_size
        values = (
            tokens,
            round(self._step_seconds, 4),
            round(per_gpu, 1),
            round(per_gpu * self._flops_per_token / 1e12, 3),
            round(_peak_memory_gib(), 3),
        )
        return dict(zip(FIGURES, values, strict=True))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Write the row of a step or of an evaluation.

        Raises:
            UserError: The loss or the gradient is no longer a number.
        """
        if not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            self._write({"step": state.global_step, "eval_loss": logs["eval_loss"]})
        if "skipped" in logs:
            self._write({"step": state.global_step, "skipped": 1})
        if "loss" not in logs:
            return
        row: dict[str, Any] = {
            "step": state.global_step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": float(logs["grad_norm"]) if "grad_norm" in logs else None,
            **{name: logs[name] for name in FIGURES},
        }
        self._write(row)
        # fp16's gradient scaler tries large scales: it skips the steps that overflow.
        watched = ("loss",) if args.fp16 else ("loss", "grad_norm")
        for name in watched:
            if not math.isfinite(row[name] or 0.0):
                raise UserError(
                    f"the {name} of step {state.global_step} is {row[name]}: lower "
                    "optimizer.learning_rate, or look at the data of this step"
                )
        if self._progress:
            speed = f"{logs['tokens'] / self._step_seconds:,.0f} tokens/s"
            self._progress.advance(loss=f"{logs['loss']:.3f}", at=speed)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the progress line."""
        if self._progress:
            self._progress.__exit__()

    def _write(self, row: dict[str, Any]) -> None:
        with self._run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _rows_until(path: Path, last_step: int) -> str:
    """The rows of steps up to one; a line that a kill cut short is none."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
    return "".join(kept)


def _peak_memory_gib() -> float:
    """Of this rank: the GPU's, or without one the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
