"""What this machine is: Python, libraries, driver, disks, memory, environment. Facts only.

`probe` gathers them once; nothing is changed and no network is used. Knows nothing of what they
mean for training, and keeps no value of a variable that could hold a secret.
"""

import os
import platform
import re
import resource
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import pressroom
from pressroom.files import home
from pressroom.gpus import Driver, ask_driver, count_gpus
from train.doctor.stack import GIB, Stack, probe_stack

ROOMS = ("pressroom", "data_prep", "train", "launch", "generate", "accelerate_configs")
_SLOW = ("CUDA_LAUNCH_BLOCKING", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE")
_RANKS = ("LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library that this project asks for."""

    name: str
    version: str | None
    """None: not installed."""
    wanted: str
    """As pyproject.toml gives it: `>=2.8,<2.14`."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A place that is written to."""

    path: str
    free_gib: float
    disk: int
    """Folders of one number share their free space."""
    writable: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine, as far as training depends on it."""

    python: Library
    system: str
    libraries: tuple[Library, ...]
    """Empty where pressroom is not installed."""
    driver: Driver | None
    """None: no nvidia-smi."""
    stack: Stack
    counted_gpus: int
    """Ranks that `pressroom train` would start."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES."""
    bf16_cpu: bool
    """Whether the CPU has AVX512-BF16."""
    memory_gib: float
    """Of the host, free for this process."""
    shm_gib: float
    """Of /dev/shm, in all."""
    open_files: int
    home: Folder
    """Where data/ and runs/ lie."""
    hub_cache: Folder
    temporary: Folder
    build_lacks: tuple[str, ...]
    """What building a C++ extension would miss."""
    slow: tuple[str, ...]
    """Variables that are set and slow training down."""
    ranks: tuple[str, ...]
    """Variables that a launcher gives its ranks, left over here."""
    accelerate: tuple[str, ...]
    """Variables by which accelerate hands on its options."""
    bnb_cuda: str | None
    """BNB_CUDA_VERSION."""
    offline: bool
    shadows: tuple[str, ...]
    """Packages in PYTHONPATH that are taken for ours."""
    shadows_here: tuple[str, ...]
    """The same in the working directory, which only a start by hand looks at."""


def probe(*, deepspeed: bool = False) -> Machine:
    """Gather the facts of this machine.

    Args:
        deepspeed: Whether deepspeed is tried too.
    """
    from huggingface_hub import constants

    environment = os.environ
    python_path = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    bf16_cpu = re.search(r"\bavx512_bf16\b", _text(Path("/proc/cpuinfo"))) is not None
    shm = Path("/dev/shm")
    return Machine(
        python=Library(name="Python", version=platform.python_version(), wanted=_python()),
        system=f"{platform.system()} {platform.machine()}",
        libraries=_libraries(),
        driver=ask_driver(),
        stack=probe_stack(deepspeed=deepspeed, may_fetch=bf16_cpu and not constants.HF_HUB_OFFLINE),
        counted_gpus=count_gpus(),
        visible=environment.get("CUDA_VISIBLE_DEVICES"),
        bf16_cpu=bf16_cpu,
        memory_gib=round(min([_available(), *_limits()]) / GIB, 1),
        shm_gib=round(shutil.disk_usage(shm).total / GIB, 2) if shm.is_dir() else 0.0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        home=_folder(home()),
        hub_cache=_folder(Path(constants.HF_HUB_CACHE)),
        temporary=_folder(Path(tempfile.gettempdir())),
        build_lacks=_build_lacks(),
        slow=tuple(n for n in _SLOW if environment.get(n, "0") not in ("", "0")),
        ranks=tuple(n for n in _RANKS if n in environment),
        accelerate=tuple(sorted(n for n in environment if n.startswith("ACCELERATE_"))),
        bnb_cuda=environment.get("BNB_CUDA_VERSION"),
        offline=constants.HF_HUB_OFFLINE,
        shadows=shadows(map(Path, python_path)),
        shadows_here=shadows([Path()]) if not sys.flags.safe_path else (),
    )


def shadows(folders: Iterable[Path]) -> tuple[str, ...]:
    """Files and packages that bear the name of one of ours and are found before it."""
    ours = Path(pressroom.__file__).parents[1]
    found = []
    for folder in folders:
        if folder.resolve() == ours.resolve():
            break
        for room in ROOMS:
            candidates = (folder / f"{room}.py", folder / room / "__init__.py")
            found += [str(path.absolute()) for path in candidates if path.is_file()]
    return tuple(found)


def _python() -> str:
    try:
        return metadata.metadata("pressroom")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return ""


def _libraries() -> tuple[Library, ...]:
    try:
        lines = metadata.requires("pressroom") or []
    except metadata.PackageNotFoundError:
        return ()
    asked = [Requirement(line) for line in lines]
    return tuple(
        Library(name=r.name, version=_version(r.name), wanted=str(r.specifier))
        for r in asked
        if r.marker is None or r.marker.evaluate({"extra": ""})
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _folder(path: Path) -> Folder:
    """A folder, or the nearest one above it that exists already."""
    there = path.absolute()
    while not os.access(there, os.F_OK):
        there = there.parent
    return Folder(
        path=str(path.absolute()),
        free_gib=round(shutil.disk_usage(there).free / GIB, 1),
        disk=there.stat().st_dev,
        writable=os.access(there, os.W_OK | os.X_OK),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _available() -> int:
    """Bytes of the host's memory that can be had without swapping."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", _text(Path("/proc/meminfo")))
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits() -> list[int]:
    """Bytes that control groups, of a container or a job, leave to this process."""
    limits = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = root / group.lstrip("/")
        for place in (folder, *(p for p in folder.parents if p.is_relative_to(root))):
            text = _text(place / file).strip()
            limits += [int(text)] if text.isdigit() else []
    return limits


def _build_lacks() -> tuple[str, ...]:
    compiler = os.environ.get("CXX", "c++")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    there = {
        f"a C++ compiler ({compiler})": shutil.which(compiler.split()[0]) is not None,
        "ninja": shutil.which("ninja") is not None,
        "Python's headers (Python.h)": header.is_file(),
    }
    return tuple(name for name, found in there.items() if not found)
