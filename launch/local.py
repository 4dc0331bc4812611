"""How training starts on this machine: `accelerate launch -m train.sft`.

One rank a GPU, with the strategy's accelerate config; without a GPU one process on the CPU.
Knows nothing of SLURM, and nothing of training.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
        )
    except OSError:
        return 0
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


def train_command(
    recipe: Recipe, run: RunDir, dataset: Path, *, num_gpus: int, num_cpus: int
) -> list[str]:
    """The command that trains a run on this machine: a pure function.

    Raises:
        UserError: The strategy needs a GPU and there is none.
    """
    processes = max(num_gpus, 1)
    threads = max(num_cpus // processes, 1)
    recipe.batch.gradient_accumulation_steps(processes)
    if num_gpus:
        config = resources.files("accelerate_configs") / f"{recipe.parallel.strategy}.yaml"
        where = ["--config_file", str(config)]
    elif recipe.parallel.strategy != "ddp":
        raise UserError(
            f"parallel.strategy: {recipe.parallel.strategy} shards over GPUs, and this machine "
            "has none: use ddp"
        )
    else:
        where = ["--cpu", "--dynamo_backend", "no", "--mixed_precision", "no"]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *where,
        *("--num_machines", "1", "--num_processes", str(processes)),
        *("--num_cpu_threads_per_process", str(threads)),
        *("-m", "train.sft", str(run.recipe)),
        *("--run", str(run.path), "--dataset", str(dataset)),
    ]


def run_module(command: Sequence[str]) -> None:
    """Run a command to its end, its output on this terminal.

    Raises:
        UserError: It failed; what it wrote says why.
        KeyboardInterrupt: It was interrupted, and has ended.
    """
    # A stranger's train.py in the working directory must not be taken for ours.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with subprocess.Popen(command, env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
    if code:
        name = command[command.index("-m") + 1]
        inner = [a for a in command if a == "train.sft"] or [name]
        raise UserError(f"{inner[0]} ended with exit code {code} (its message stands above)")
