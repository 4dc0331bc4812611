"""Trackers: who is told of a run's figures, beside metrics.jsonl.

TensorBoard writes into the run directory. The others go through transformers' integrations and
are configured by their own environment variables, keys included; here they only get names where
the user has given none. Knows nothing of what is measured.
"""

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

PROJECT = "pressroom"
_FLUSH_SECONDS = 5
"""Of TensorBoard's file; metrics.jsonl has each row at once."""


def run_name(run: RunDir) -> str:
    """NAME-STAMP: what a tracker calls the run."""
    return f"{run.path.parent.name}-{run.path.name}"


def callbacks(recipe: Recipe, run: RunDir) -> list[TrainerCallback]:
    """The trackers that a recipe asks for.

    Raises:
        UserError: One of them is not installed.
    """
    recipe.tracking.require()
    defaults = {
        "WANDB_PROJECT": PROJECT,
        # The same id again: a run that goes on after a kill goes on in its tracker.
        "WANDB_RUN_ID": run_name(run),
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(run.path),
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    kinds: dict[str, Any] = {
        "tensorboard": lambda: _TensorBoard(str(run.tensorboard)),
        "wandb": WandbCallback,
        "mlflow": MLflowCallback,
        "trackio": TrackioCallback,
    }
    return [kinds[name]() for name in recipe.tracking.trackers]


def show_texts(callbacks: Sequence[TrainerCallback], step: int, rows: list[dict[str, str]]) -> None:
    """Tell trackers of texts: a table of W&B or Trackio, a page of TensorBoard, a file of MLflow.

    Args:
        callbacks: Those of `callbacks`, once training has begun.
        step: When they were written.
        rows: Texts by the same names in each.
    """
    page = "\n\n".join("\n".join(f"{n}: {text}" for n, text in row.items()) for row in rows)
    for callback in callbacks:
        if isinstance(callback, _TensorBoard):
            # Indented, as Markdown that is shown and not read.
            callback.tb_writer.add_text("samples", textwrap.indent(page, "    "), step)
        elif isinstance(callback, MLflowCallback):
            callback._ml_flow.log_text(page, f"samples/step-{step:06d}.txt")
        else:
            module = getattr(callback, "_wandb", None) or callback._trackio
            table = module.Table(dataframe=pandas.DataFrame(rows))
            module.log({"samples": table, "train/global_step": step})


class _Unhurried(SummaryWriter):
    def flush(self) -> None:
        """Leave it to the writer's own thread: a step need not wait for a disk, nor the GPU."""


class _TensorBoard(TensorBoardCallback):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.logging_dir = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a file; steps that a resumed run does again replace those of before."""
        if state.is_world_process_zero:
            self.tb_writer = _Unhurried(
                self.logging_dir, purge_step=state.global_step + 1, flush_secs=_FLUSH_SECONDS
            )
        super().on_train_begin(args, state, control, **kwargs)
