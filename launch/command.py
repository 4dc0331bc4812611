"""The command of each stage; of training on one node of however many.

Pure functions. Training is `accelerate launch -m train.sft`: one rank a GPU, with the strategy's
accelerate config; without GPUs one rank a node, on its CPUs. Knows nothing of how a command is
run, nor of SLURM.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from pressroom.console import UserError
from pressroom.gpus import needs_gpu
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class Node:
    """One of the nodes that train a run together."""

    num_gpus: int
    """One rank each; 0 is `num_cpu_ranks` on the CPU."""
    num_cpus: int
    """Divided over the node's ranks."""
    num_cpu_ranks: int = 1
    """Where there is no GPU."""
    rank: int = 0
    count: int = 1
    """All nodes."""
    address: str = ""
    """Of the node of rank 0, where there are others."""
    port: int = 0

    @property
    def num_ranks(self) -> int:
        """Ranks of this node; every other has as many."""
        return self.num_gpus or self.num_cpu_ranks

    @property
    def world_size(self) -> int:
        """Ranks of all nodes."""
        return self.count * self.num_ranks

    @property
    def num_threads(self) -> int:
        """CPUs of a rank."""
        return max(self.num_cpus // self.num_ranks, 1)


def train_command(recipe: Recipe, run: RunDir, dataset: Path, node: Node) -> list[str]:
    """The command that trains a run on a node.

    Args:
        recipe: Says the strategy, whose accelerate config is used by more than one rank.
        run: The run directory.
        dataset: The dataset's folder.
        node: Which one, and what it has.

    Raises:
        UserError: The recipe needs a GPU, another number of them, or a tracker that is missing.
    """
    recipe.batch.gradient_accumulation_steps(node.world_size)
    recipe.tracking.require()
    if not node.num_gpus and needs_gpu(recipe):
        raise UserError("this machine has no GPU:\n" + "\n".join(needs_gpu(recipe)))
    # A config is always named: accelerate would take the user's own default otherwise.
    config = recipe.parallel.strategy if node.world_size > 1 else "single"
    others = ("--machine_rank", str(node.rank), "--main_process_ip", node.address)
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", str(resources.files("accelerate_configs") / f"{config}.yaml")),
        *(["--cpu"] if node.world_size == 1 and not node.num_gpus else []),
        *("--num_machines", str(node.count), "--num_processes", str(node.world_size)),
        *(others if node.count > 1 else ()),
        *(("--main_process_port", str(node.port)) if node.port else ()),
        *("--num_cpu_threads_per_process", str(node.num_threads)),
        *("-m", "train.sft", str(run.recipe)),
        *("--run", str(run.path), "--dataset", str(dataset)),
    ]


Stage = Literal["prep", "quantize", "train", "evaluate", "merge", "generate"]
_MODULES: dict[str, tuple[str, ...]] = {
    "prep": ("data_prep.prepare",),
    "quantize": ("train.quantize",),
    "evaluate": ("generate.commands", "evaluate"),
    "merge": ("generate.commands", "merge"),
    "generate": ("generate.commands", "generate"),
}
OF_RECIPES = ("prep", "quantize")
"""Stages that read a recipe; the others read a run."""


def stage_command(stage: str, arguments: Sequence[str]) -> list[str]:
    """The command of any stage but training.

    Args:
        stage: Its name.
        arguments: A recipe and its overrides, or a run.
    """
    return [sys.executable, "-m", *_MODULES[stage], *arguments]


def command_of(stage: str, run: RunDir) -> list[str]:
    """The command of any stage but training, for a run."""
    return stage_command(stage, [str(run.recipe if stage in OF_RECIPES else run.path)])
