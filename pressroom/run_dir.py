"""The run directory: the one place that knows the paths inside it.

`pressroom/run_place.py` says where a run lies. It says what really ran (recipe, versions), how it
went (metrics, logs) and holds what came out. Knows nothing of how any of it is made.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pressroom.console import UserError
from pressroom.files import home, publish_json, publish_text, read_json, sizes
from pressroom.recipe import Recipe
from pressroom.run_place import RunPlace


def rank_log(folder: Path, rank: int) -> Path:
    """One rank's file in a folder of what ranks said."""
    return folder / f"rank-{rank:05d}.log"


@dataclass(frozen=True)
class RunDir(RunPlace):
    """One training run on disk."""

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

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def cluster(self) -> Path:
        """The cluster that it was submitted to."""
        return self.path / "cluster.yaml"

    @property
    def keys(self) -> Path:
        """What each stage's output is made from, as found at submission."""
        return self.submission / "keys.json"

    @property
    def jobs(self) -> Path:
        """A file for each job that was submitted."""
        return self.submission / "jobs"

    @property
    def starts(self) -> Path:
        """One JSON line for each start of a job, a requeued one's included."""
        return self.path / "starts.jsonl"

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
        return dict(read_json(self.environment, "train again, under another name"))

    @property
    def dataset(self) -> Path:
        """The dataset that the run was trained on.

        Raises:
            UserError: Training has not begun, or the dataset is gone.
        """
        folder: Path = self.home / self.facts["dataset"]
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
    def times(self) -> Path:
        """One JSON line for each thing that took time, steps that were done again included."""
        return self.path / "times.jsonl"

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

    def rank_log(self, rank: int) -> Path:
        """What one rank said, over all starts."""
        return rank_log(self.logs, rank)

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
    def newest_step(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        names = [path.name for path in self.checkpoints.glob("step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

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
        """Held-out loss by group, base beside tuned; written descriptions beside real ones."""
        return self.path / "evaluation.json"

    @property
    def descriptions(self) -> Path:
        """What the tuned model wrote for held-out titles, to be evaluated."""
        return self.path / "descriptions.jsonl"

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
        return dict(read_json(self.stages_file, "delete it, and every stage is done again"))

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
        later = {"evaluate": self.evaluation, "merge": self.merged, "generate": self.samples}
        return self.adapter if stage == "train" else later[stage]

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe; later stages may be redone with other settings."""
        publish_text(self.recipe, yaml.safe_dump(recipe.to_dict(), sort_keys=False))

    def load_recipe(self) -> Recipe:
        """The recipe that really ran."""
        return Recipe.load(str(self.recipe))
