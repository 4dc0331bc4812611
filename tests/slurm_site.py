"""A user's folder on a test cluster: articles, a recipe, a cluster file, and what one types there.

Its jobs train on CPU ranks, one a node, which shard as GPUs do (`tests/cpu_cluster`).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conftest import invented_articles, recipe_text, write_jsonl
from training import losses

from data_prep.prepare import prepare
from launch.snapshot import PACKAGES
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.runs import runs_of
from slurm import Slurm

ROOT = Path(__file__).parents[1]
CLUSTER = {
    "partition": "train",
    "nodes": 2,
    "gpus_per_node": 0,
    "cpus_per_node": 1,
    "memory_gib": 6,
    "time_limit": "1:00:00",
    "cpu_jobs": {"tasks": 2, "cpus": 1, "memory_gib": 4, "time_limit": "1:00:00"},
    "signal_seconds": 20,
}


def fine_tune(home: str, overrides: tuple[str, ...]) -> str:
    """On a rank: train `home/recipe.yaml`; its run."""
    os.chdir(home)
    os.environ["PRESSROOM_HOME"] = home
    from train import sft

    recipe = Recipe.load("recipe.yaml", overrides)
    return str(sft.fine_tune(recipe, None, str(prepare(recipe))).path)


class Site:
    """A home folder, which is the working directory too, and a cluster."""

    def __init__(self, slurm: Slurm, home: Path, model: Path) -> None:
        self.slurm, self.home, self.model = slurm, home, model
        self.code = ROOT
        write_jsonl(home / "articles.jsonl", invented_articles(160))
        self.recipe()
        self.cluster()

    def recipe(self, **sections: Any) -> None:
        """Write recipe.yaml."""
        sections = {"parallel": {"strategy": "fsdp"}, **sections}
        (self.home / "recipe.yaml").write_text(recipe_text(self.model, **sections))

    def cluster(self, **changes: Any) -> None:
        """Write cluster.yaml."""
        (self.home / "cluster.yaml").write_text(json.dumps(CLUSTER | changes))

    def copy_code(self) -> Path:
        """Work from a copy of the code from now on, as from a clone that is going to be edited."""
        self.code = self.home / "clone"
        for name in PACKAGES:
            shutil.copytree(ROOT / name, self.code / name)
        return self.code

    @property
    def env(self) -> dict[str, str]:
        """Of the shell in which one types."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shim = Path(__file__).parent / "cpu_cluster"
        return self.slurm.env | {"PATH": path, "PYTHONPATH": f"{self.code}:{shim}"}

    def pressroom(self, *arguments: str, code: int = 0, seconds: float = 120) -> str:
        """What `pressroom ...` prints, errors included."""
        entry = "from pressroom.cli import entry; entry()"
        return self.type(sys.executable, "-P", "-c", entry, *arguments, code=code, seconds=seconds)

    def type(self, *command: str, code: int = 0, seconds: float = 120) -> str:
        """What a command prints."""
        done = subprocess.run(
            command,
            env=self.env,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == code, f"{command} -> {done.returncode}\n{done.stdout}"
        return done.stdout

    def sbatch(self, *arguments: str | Path) -> str:
        """Submit one of `slurm/*.sh`, or anything else; the job."""
        return self.type("sbatch", "--parsable", *map(str, arguments)).strip()

    def runs(self) -> list[RunDir]:
        """All runs, newest first."""
        os.environ["PRESSROOM_HOME"] = str(self.home)
        return runs_of()

    def trained_beyond(self, run: RunDir, step: int, job: str, *, seconds: float = 120) -> int:
        """Wait until a run is beyond a step; the step where it is."""
        at = 0

        def beyond() -> bool:
            nonlocal at
            at = max(losses(run), default=0) if run.metrics.is_file() else 0
            return at > step

        self.slurm.until(beyond, job, f"beyond step {step}", seconds)
        return at


def job_of(text: str, stage: str = "train") -> str:
    """The job that a command says it has submitted for a stage."""
    lines = [line.split() for line in text.splitlines()]
    return next(words[2].strip(",") for words in lines if words[:2] == [stage, "job"])


def wait_for(is_so: Any, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)
