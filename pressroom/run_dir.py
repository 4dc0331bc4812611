"""The run directory: the one place that knows the paths inside it.

A run is `runs/NAME/STAMP/`. It says what really ran (recipe, versions), how it went (metrics,
logs) and holds what came out. Knows nothing of how any of it is made.
"""

import difflib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pressroom.console import UserError
from pressroom.files import home, publish_json, publish_text, read_json, sizes
from pressroom.recipe import Recipe


@dataclass(frozen=True)
class RunDir:
    """One training run on disk."""

    path: Path

    @classmethod
    def fresh(cls, recipe: Recipe) -> "RunDir":
        """A run directory that is not there yet, named by the time."""
        stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        folder = home() / "runs" / recipe.name
        path, again = folder / stamp, 1
        while path.exists():
            again += 1
            path = folder / f"{stamp}-{again}"
        return cls(path)

    @classmethod
    def create(cls, recipe: Recipe) -> "RunDir":
        """Make a new run directory that holds the resolved recipe."""
        run = cls.fresh(recipe)
        run.begin(recipe)
        return run

    def begin(self, recipe: Recipe) -> None:
        """Make the directory, with the resolved recipe in it."""
        self.path.mkdir(parents=True)
        self.write_recipe(recipe)

    @classmethod
    def all(cls, name: str) -> "list[RunDir]":
        """The runs of a recipe's name, newest first."""
        paths = sorted((home() / "runs" / name).glob("*/recipe.yaml"), reverse=True)
        return [cls(path.parent) for path in paths]

    @classmethod
    def find(cls, run: str, *, trained: bool = False) -> "RunDir":
        """A run by its folder or something in it, by NAME/STAMP or STAMP; the newest of NAME.

        A recipe's file stands for its name.

        Args:
            run: What the user typed.
            trained: Take the newest of NAME that has an adapter, and see that a given one has.

        Raises:
            UserError: There is no such run, or it has no adapter yet.
        """
        found = cls._named(run)
        if trained:
            finished = [candidate for candidate in found if candidate.adapter.is_dir()]
            if not finished:
                raise UserError(f"{found[0].path}: has no adapter yet; training is not finished")
            return finished[0]
        return found[0]

    @classmethod
    def _named(cls, run: str) -> "list[RunDir]":
        runs = home() / "runs"
        if run.endswith((".yaml", ".yml")) and Path(run).is_file():
            run = Recipe.load(run).name
        for path in (Path(run), home() / run, runs / run, *sorted(runs.glob(f"*/{run}"))):
            for folder in (path, path.parent):
                if path.exists() and (folder / "recipe.yaml").is_file():
                    return [cls(folder)]
        found = cls.all(Path(run).name)
        if not found:
            for path in (Path(run), runs / run):
                if path.is_dir():
                    raise UserError(f"{path}: has no run in it: no recipe.yaml")
            names = sorted(p.name for p in runs.glob("*") if p.is_dir())
            close = difflib.get_close_matches(run, names, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            known = f"; runs of: {', '.join(names)}" if names else " (no runs yet)"
            raise UserError(f"{run}: no such run under {runs.absolute()}{hint or known}")
        return found

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Library versions, devices, the base model's folder and the dataset's."""
        return self.path / "environment.json"

    @property
    def facts(self) -> dict[str, Any]:
        """What environment.json says.

        Raises:
            UserError: Training has not begun, or the file is damaged.
        """
        if not self.environment.is_file():
            raise UserError(f"{self.path}: training has not begun")
        facts: dict[str, Any] = read_json(self.environment, "train again, under another name")
        return facts

    @property
    def dataset(self) -> Path:
        """The dataset that the run was trained on.

        Raises:
            UserError: Training has not begun, or the dataset is gone.
        """
        folder: Path = self.path.parents[2] / self.facts["dataset"]  # home/runs/NAME/STAMP
        if not folder.is_dir():
            raise UserError(f"{self.path}: its dataset {folder} is gone")
        return folder

    @property
    def lock(self) -> Path:
        """Held by every rank that trains here."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What the planner predicted beside what was measured."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The run as a page that stands alone."""
        return self.path / "report.html"

    @property
    def error(self) -> Path:
        """Why the run failed, in words; not there while nothing has."""
        return self.path / "error.txt"

    @property
    def logs(self) -> Path:
        """What the ranks said, a file each."""
        return self.path / "logs"

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
    def preempted(self) -> Path:
        """Says at which step a run ended because it was asked to; the next start takes it away."""
        return self.path / "preempted"

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
        """What the tuned model and the base write; with `step`, in mid-training."""
        return self.path / "samples.jsonl"

    @property
    def stages_file(self) -> Path:
        """What each stage was made from, when, and how long it took."""
        return self.path / "stages.json"

    @property
    def stages(self) -> dict[str, Any]:
        """Stages begun or finished: name -> {key, finished, seconds, files}."""
        if not self.stages_file.is_file():
            return {}
        stages: dict[str, Any] = read_json(
            self.stages_file, "delete it, and every stage is done again"
        )
        return stages

    def record_stage(self, name: str, key: str, seconds: float | None = None) -> None:
        """Remember what a stage's output is made from; without seconds, it has only begun."""
        done: dict[str, Any] = {}
        if seconds is not None:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            files = sizes(self.output(name))
            done = {"finished": now, "seconds": round(seconds, 1), "files": files}
        publish_json(self.stages_file, {**self.stages, name: {"key": key, **done}})

    def output(self, stage: str) -> Path:
        """The file or folder that a stage leaves here."""
        outputs = {
            "train": self.adapter,
            "evaluate": self.evaluation,
            "merge": self.merged,
            "generate": self.samples,
        }
        return outputs[stage]

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe; later stages may be redone with other settings."""
        publish_text(self.recipe, yaml.safe_dump(recipe.to_dict(), sort_keys=False))

    def load_recipe(self) -> Recipe:
        """The recipe that really ran."""
        return Recipe.load(str(self.recipe))
