"""The GPUs of this machine, and what a recipe makes of them: ranks, and what it cannot do without.

Knows nothing of how training starts, and asks the driver, never torch.
"""

import os
import re
import subprocess
from dataclasses import dataclass

from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.train_sections import Batch

_SMI_SECONDS = 30


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here would see.

    Raises:
        UserError: The driver hangs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SMI_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError("nvidia-smi does not answer: the driver hangs; restart the node") from None
    except OSError:
        return 0
    if listed.returncode:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What nvidia-smi says."""

    version: str = ""
    cuda: str = ""
    """The newest CUDA that it runs."""
    gpus: tuple[str, ...] = ()
    """Names of all GPUs, whichever CUDA_VISIBLE_DEVICES shows."""
    memory_gib: float = 0.0
    """Of the smallest of them."""
    error: str = ""
    """Why it says nothing."""


def ask_driver() -> Driver | None:
    """The NVIDIA driver; None where there is no nvidia-smi."""
    names_only = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    try:
        table, names = (
            subprocess.run(
                ["nvidia-smi", *query],
                capture_output=True,
                text=True,
                check=False,
                timeout=_SMI_SECONDS,
            )
            for query in ((), names_only)
        )
    except subprocess.TimeoutExpired:
        return Driver(error="nvidia-smi does not answer")
    except OSError:
        return None
    if table.returncode:
        lines = (table.stdout + table.stderr).strip().splitlines()
        return Driver(error=lines[0] if lines else f"nvidia-smi ended with {table.returncode}")
    version = re.search(r"(?:Driver|KMD) Version:\s*([\d.]+)", table.stdout)
    cards = [line.rpartition(",") for line in names.stdout.splitlines() if "," in line]
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", table.stdout)
    return Driver(
        version=version[1] if version else "",
        cuda=cuda[1] if cuda else "",
        gpus=tuple(name.strip() for name, _, _ in cards),
        memory_gib=min((float(size) / 1024 for _, _, size in cards), default=0.0),
    )


def most_ranks(batch: Batch, num_gpus: int) -> int:
    """One rank a GPU, of those GPUs over which the batch divides; at least one."""
    return max((n for n in range(1, num_gpus + 1) if batch.divides_over(n)), default=1)


def needs_gpu(recipe: Recipe) -> list[str]:
    """What a recipe asks for that only a GPU can do, and what to use without one."""
    needs = []
    if recipe.parallel.strategy != "ddp":
        needs.append(f"parallel.strategy: {recipe.parallel.strategy} shards over GPUs: use ddp")
    if recipe.memory.precision == "fp16":
        needs.append("memory.precision: fp16 needs a GPU's gradient scaler: use bf16 or fp32")
    if recipe.optimizer.name.startswith("paged_"):
        needs.append(f"optimizer.name: {recipe.optimizer.name} pages from a GPU: use adamw_torch")
    return needs
