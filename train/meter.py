"""What a run does, step by step: metrics.jsonl and the progress line.

A row has the step's loss, learning rate, gradient norm and `FIGURES`; an evaluation adds a row
with `eval_loss`. Only rank 0 writes. What is not known is null. Knows nothing of how steps are
made.
"""

import json
import math
import resource
import statistics
import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from pressroom.console import Progress, UserError
from pressroom.files import lines_until, publish_text
from pressroom.geometry import Geometry
from pressroom.planner.choice import Gpus
from pressroom.planner.flops import hardware_flops_per_token
from pressroom.planner.gpu_kinds import KINDS
from pressroom.planner.setup import save_of
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.times import Marks

FIGURES = (
    "tokens",
    "trained_tokens",
    "step_seconds",
    "data_wait_seconds",
    "tokens_per_second_per_gpu",
    "model_tflops_per_second_per_gpu",
    "mfu",
    "hfu",
    "peak_memory_gib",
    "peak_host_memory_gib",
)


class Meter(TrainerCallback):
    """Writes metrics.jsonl and shows progress.

    Args:
        run: Whose metrics these are.
        recipe: Without `auto`.
        geometry: Of the base, for FLOPs.
        gpus: What the ranks run on, one each.
        marks: Where what was done is marked.
    """

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        geometry: Geometry,
        gpus: Gpus,
        marks: Marks | None = None,
    ) -> None:
        self.marks = marks or Marks()
        self._run, self._geometry, self._world_size = run, geometry, gpus.count
        self._checkpointing = recipe.memory.activation_checkpointing
        self._save = save_of(recipe, geometry)
        self._peak_tflops = peak_tflops(gpus, recipe.memory.precision)
        self._step_start = time.perf_counter()
        self.data_wait_seconds = 0.0
        """What the step that runs has waited for its rows."""
        self.step_seconds: list[float] = []
        self.save_seconds: list[float] = []
        self.load_seconds = self.load_peak_gib = 0.0
        self._progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop rows of steps that will be done again; open the progress line.

        The base is loaded and divided by now: what follows is the peak of the steps.
        """
        self.load_seconds = time.time() - psutil.Process().create_time()
        self.marks.mark("load", state.global_step)
        self.load_peak_gib = _peak_memory_gib()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks left by loading would stay reserved
            torch.cuda.reset_peak_memory_stats()
        self.start_clock()
        if not state.is_world_process_zero:
            return
        if self._run.metrics.is_file():
            publish_text(self._run.metrics, lines_until(self._run.metrics, state.global_step))
        self._progress = Progress("train", state.max_steps, "step", done=state.global_step)

    def start_clock(self) -> None:
        """A step begins: what evaluating, saving or writing samples took is not counted in it."""
        self._step_start = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock anew."""
        self.marks.mark("evaluate", state.global_step)
        self.start_clock()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock anew."""
        self.marks.mark("save", state.global_step)
        self.start_clock()

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

    def figures(self, tokens: int, trained: int, squares: float) -> dict[str, float]:
        """Stop the clock: what a step took, from the fetching of its rows to its figures.

        Called when the GPU has been waited for.

        Args:
            tokens: Of the step, over all ranks.
            trained: Those of them that carry loss.
            squares: Sum of squared article lengths, for attention.

        Returns:
            Those of `FIGURES` that are known.
        """
        seconds = time.perf_counter() - self._step_start
        self.start_clock()
        self.step_seconds.append(seconds)
        rate = tokens / seconds / self._world_size
        attended = squares / tokens
        tflops = rate * self._geometry.model_flops_per_token(attended) / 1e12
        found = {
            "tokens": tokens,
            "trained_tokens": trained,
            "step_seconds": round(seconds, 4),
            "data_wait_seconds": round(self.data_wait_seconds, 4),
            "tokens_per_second_per_gpu": round(rate, 1),
            "model_tflops_per_second_per_gpu": round(tflops, 3),
            "peak_memory_gib": round(_peak_memory_gib(), 3),
            "peak_host_memory_gib": round(_peak_host_memory_gib(), 3),
        }
        if self._peak_tflops and self._checkpointing != "auto":
            hardware = hardware_flops_per_token(
                self._geometry, attended, self._checkpointing, self._save
            )
            found["mfu"] = round(tflops / self._peak_tflops, 4)
            found["hfu"] = round(rate * hardware / 1e12 / self._peak_tflops, 4)
        return found

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
        if "loss" in logs or "skipped" in logs:
            self.marks.mark("step", state.global_step)
        if "skipped" in logs:
            self._write({"step": state.global_step, "skipped": 1})
        if "loss" not in logs:
            return
        names = ("loss", "learning_rate", "grad_norm", *FIGURES)
        row: dict[str, Any] = {"step": state.global_step, **{n: logs.get(n) for n in names}}
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
            speed = f"{logs['tokens_per_second_per_gpu'] * self._world_size:,.0f} tokens/s"
            self._progress.advance(loss=f"{logs['loss']:.3f}", at=speed)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the progress line."""
        if self._progress:
            self._progress.__exit__()

    def _write(self, row: dict[str, Any]) -> None:
        with self._run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def peak_tflops(gpus: Gpus, precision: str) -> float | None:
    """The datasheet's rate of a GPU in what the model computes in; None where nobody knows it.

    A GPU that is not in the table plans with a neighbour's rates: shares of those would be made up.
    """
    described = gpus.kind.name in KINDS
    computes = gpus.kind.has_bf16 if precision == "bf16" else precision == "fp16"
    return gpus.kind.tflops if described and computes else None


def _peak_memory_gib() -> float:
    """Of this rank: what torch reserved of the GPU, or without one the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return _peak_host_memory_gib()


def _peak_host_memory_gib() -> float:
    """Of this rank's process, files that are mapped included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
