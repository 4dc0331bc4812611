"""Trackers: who is told of a run's figures, beside metrics.jsonl.

TensorBoard writes into the run directory. The others go through transformers' integrations and
are configured by their own environment variables, keys included; here they only get names where
the user has given none. Knows nothing of what is measured.
"""

import os
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

PROJECT = "pressroom"


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


class _TensorBoard(TensorBoardCallback):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.logging_dir = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a file; steps that a resumed run does again replace those of before."""
        if state.is_world_process_zero:
            self.tb_writer = SummaryWriter(self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)
