"""The run directory: the one place that knows the paths inside it.

A run is `runs/NAME/STAMP/`. It says what really ran (recipe, versions), how it went (metrics,
logs) and holds what came out. Knows nothing of how any of it is made.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pressroom.console import UserError
from pressroom.files import home, publish_json, publish_text
from pressroom.recipe import Recipe


@dataclass(frozen=True)
class RunDir:
    """One training run on disk."""

    path: Path

    @classmethod
    def create(cls, recipe: Recipe) -> "RunDir":
        """Make a new run directory that holds the resolved recipe."""
        stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        folder = home() / "runs" / recipe.name
        path, again = folder / stamp, 1
        while path.exists():
            again += 1
            path = folder / f"{stamp}-{again}"
        path.mkdir(parents=True)
        run = cls(path)
        run.write_recipe(recipe)
        return run

    @classmethod
    def all(cls, name: str) -> "list[RunDir]":
        """The runs of a recipe's name, newest first."""
        paths = sorted((home() / "runs" / name).glob("*/recipe.yaml"), reverse=True)
        return [cls(path.parent) for path in paths]

    @classmethod
    def find(cls, run: str) -> "RunDir":
        """A run by its folder, by NAME/STAMP, or the newest of NAME.

        Raises:
            UserError: There is no such run.
        """
        for path in (Path(run), home() / run, home() / "runs" / run):
            if (path / "recipe.yaml").is_file():
                return cls(path)
        found = cls.all(run)
        if not found:
            known = sorted(p.name for p in (home() / "runs").glob("*") if p.is_dir())
            runs = f"; runs of: {', '.join(known)}" if known else " (no runs yet)"
            raise UserError(f"{run}: no such run under {(home() / 'runs').absolute()}{runs}")
        return found[0]

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Library versions, devices, the base model's folder and the dataset's."""
        return self.path / "environment.json"

    @property
    def dataset(self) -> Path:
        """The dataset that the run was trained on.

        Raises:
            UserError: Training has not begun, or the dataset is gone.
        """
        if not self.environment.is_file():
            raise UserError(f"{self.path}: training has not begun")
        facts = json.loads(self.environment.read_text(encoding="utf-8"))
        folder: Path = self.path.parents[2] / facts["dataset"]  # home/runs/NAME/STAMP
        if not folder.is_dir():
            raise UserError(f"{self.path}: its dataset {folder} is gone")
        return folder

    @property
    def lock(self) -> Path:
        """Held while a process trains here."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same figures for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Complete checkpoints only."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of one optimizer step."""
        return self.checkpoints / f"step-{step:06d}"

    @property
    def adapter(self) -> Path:
        """The final adapter, standard PEFT."""
        return self.path / "adapter"

    @property
    def evaluation(self) -> Path:
        """Held-out perplexity, base beside tuned."""
        return self.path / "evaluation.json"

    @property
    def merged(self) -> Path:
        """The merged model, standard safetensors."""
        return self.path / "merged"

    @property
    def merge_report(self) -> Path:
        """How far the merged logits are from those that were trained."""
        return self.merged / "merge.json"

    @property
    def samples(self) -> Path:
        """What the tuned model and the base write."""
        return self.path / "samples.jsonl"

    @property
    def stages(self) -> dict[str, Any]:
        """Stages begun or finished: name -> {key, finished, seconds}."""
        path = self.path / "stages.json"
        stages: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return stages

    def record_stage(self, name: str, key: str, seconds: float | None = None) -> None:
        """Remember what a stage's output is made from; without seconds, it has only begun."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        done = {} if seconds is None else {"finished": now, "seconds": round(seconds, 1)}
        publish_json(self.path / "stages.json", {**self.stages, name: {"key": key, **done}})

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe; later stages may be redone with other settings."""
        publish_text(self.recipe, yaml.safe_dump(recipe.to_dict(), sort_keys=False))

    def load_recipe(self) -> Recipe:
        """The recipe that really ran."""
        return Recipe.load(str(self.recipe))
