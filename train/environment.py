"""What runs here: libraries, Pressroom's own code, the device. Facts, of which figures depend."""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

import pressroom

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
ROOMS = ("pressroom", "train", "accelerate_configs")
"""Those that take part in training."""


def environment(accelerator: Accelerator) -> dict[str, object]:
    """What a run's figures depend on besides its recipe."""
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"
    )
    return {
        "device": device,
        "world_size": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "cpu_count": os.cpu_count(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, Pressroom and the libraries that train."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("pressroom", *LIBRARIES)},
    }


def code() -> str:
    """What tells Pressroom's own code from other code: a hash of the rooms that train."""
    house = Path(pressroom.__file__).parents[1]
    files = sorted(p for room in ROOMS for p in (house / room).rglob("*.*") if p.is_file())
    found = hashlib.sha256()
    for file in files:
        if file.suffix in (".py", ".yaml"):
            found.update(f"{file.relative_to(house)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:12]
