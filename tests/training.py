"""Train in this process: what the training tests share."""

import json
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

from data_prep.prepare import prepare
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


def train(*overrides: str, run: RunDir | None = None, recipe: str = "recipe.yaml") -> RunDir:
    """Prepare if needed, and fine-tune, alone, with accelerate's state as in a new process."""
    from train.sft import fine_tune

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    loaded = Recipe.load(recipe, overrides)
    folder = prepare(loaded)
    finished = fine_tune(loaded, str(run.path) if run else None, str(folder))
    environment = json.loads(finished.environment.read_text())
    assert (environment["world_size"], environment["distributed_type"]) == (1, "NO")
    return finished


def metrics(run: RunDir) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def losses(run: RunDir) -> dict[int, float]:
    """Step -> training loss, exactly as written."""
    return {row["step"]: row["loss"] for row in metrics(run) if "loss" in row}


def adapter(run: RunDir) -> dict[str, Any]:
    """The final adapter's tensors."""
    return tensors(run.adapter)


def tensors(folder: Path) -> dict[str, Any]:
    """An adapter folder's tensors."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")
