"""A run's model: the quantized base as it was trained on, with the run's adapter.

Knows nothing of what it is used for.
"""

import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from pressroom.base_model import model_fingerprint, model_folder
from pressroom.console import UserError
from pressroom.files import readable
from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


def device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def base_folder(run: RunDir, recipe: Recipe) -> Path:
    """The base that a run was trained on.

    Raises:
        UserError: What now bears its name is another: a branch has moved, a folder was replaced.
    """
    folder = model_folder(recipe.model)
    trained_on = run.facts.get("base_fingerprint")
    if trained_on is not None and model_fingerprint(folder) != trained_on:
        raise UserError(
            f"{run.path}: was trained on another model than {folder} is now; give model.base the "
            "folder, or model.revision the commit, that it was trained on"
        )
    return folder


def load_tuned(run: RunDir, recipe: Recipe, place: torch.device | None = None) -> PeftModel:
    """The base and the adapter, in eval mode; `disable_adapter()` gives the base.

    Args:
        run: Has the adapter.
        recipe: Says how the base is quantized.
        place: Where the model goes; `device()` when not given.

    Raises:
        UserError: The adapter or the base is damaged, or the base another.
    """
    folder = base_folder(run, recipe)
    base = load_base(folder, recipe.quantization, recipe.memory.precision, place or device())
    return add_adapter(base, run.adapter).eval()


def add_adapter(base: PreTrainedModel, adapter: Path) -> PeftModel:
    """Put an adapter on its base, every one of its tensors.

    Raises:
        UserError: It is damaged, or not this base's.
    """
    weights = adapter / "adapter_model.safetensors"
    hint = "take the adapter from the run's newest checkpoint, or train again"
    with readable(adapter, hint), warnings.catch_warnings():
        # peft leaves untrained what a file lacks, and only warns.
        warnings.filterwarnings("error", "Found missing adapter keys")
        if not weights.is_file():
            raise FileNotFoundError(weights.name)  # peft would go and look on the hub
        try:
            return PeftModel.from_pretrained(base, str(adapter))
        except UserWarning as error:
            raise ValueError("tensors are missing") from error
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise ValueError("it is for another model") from error
