"""A measurement's row: what it was measured on, and how it is kept.

Knows nothing of what is measured.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pressroom.console import redact
from pressroom.gpus import ask_driver

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.jsonl"
LIBRARIES = ("bitsandbytes", "transformers", "trl", "peft")


def facts() -> dict[str, Any]:
    """What a figure depends on: hardware, versions, commit, date, command. Unknown is null.

    `memory_gb` is that of the GPU, or of the host where there is none, in 10^9 bytes.
    """
    driver = ask_driver()
    name, memory = _hardware()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": os.environ.get("PRESSROOM_COMMIT") or _commit(),
        "command": redact(shlex.join(["python", _script(), *sys.argv[1:]])),
        "hardware": name,
        "memory_gb": round(memory / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": (driver.version or None) if driver else None,
        **{library: _version(library) for library in LIBRARIES},
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """Write a row as one line, on the disk when this returns: a run cut later loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _hardware() -> tuple[str, int]:
    """The GPU, or else the processor and its cores; with the bytes of its memory."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    name = models[0].strip() if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores, {name}", memory


def _script() -> str:
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _commit() -> str | None:
    """The commit that is checked out, with `-dirty` where files other than rows differ from it."""
    commit = _git("describe", "--always", "--exclude", "*")
    is_dirty = _git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results.jsonl")
    return f"{commit}-dirty" if commit and is_dirty else commit


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
