"""A run's model: the quantized base as it was trained on, with the run's adapter.

Knows nothing of what it is used for.
"""

import torch
from peft import PeftModel

from pressroom.base_model import model_folder
from pressroom.console import UserError
from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


def device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def require_adapter(run: RunDir) -> None:
    """Say before any work that a run is not finished.

    Raises:
        UserError: The run has no adapter yet.
    """
    if not run.adapter.is_dir():
        raise UserError(f"{run.path}: has no adapter yet; training is not finished")


def load_tuned(run: RunDir, recipe: Recipe, place: torch.device | None = None) -> PeftModel:
    """The base and the adapter, in eval mode; `disable_adapter()` gives the base.

    Args:
        run: Has the adapter.
        recipe: Says how the base is quantized.
        place: Where the model goes; `device()` when not given.

    Raises:
        UserError: The run has no adapter yet.
    """
    require_adapter(run)
    folder = model_folder(recipe.model)
    base = load_base(folder, recipe.quantization, recipe.memory.precision, place or device())
    return PeftModel.from_pretrained(base, str(run.adapter)).eval()
