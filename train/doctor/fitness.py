"""What a machine's libraries, disks, memory and environment mean, and what to do about them.

Pure functions of its facts. Knows nothing of GPUs and recipes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet

from train.doctor.machine import Folder, Library, Machine


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "problem"]
    subject: str
    what: str
    advice: str = ""
    """What to do; empty where all is well."""


Findings = Iterator[Finding]


def _versions(machine: Machine) -> Findings:
    wrong = [lib for lib in (machine.python, *machine.libraries) if not _fits(lib)]
    for library in wrong:
        what = f"{library.version} is not {library.wanted}" if library.version else "not installed"
        do = f'pip install "{library.name}{library.wanted}"'
        if library is machine.python:
            do = f"make the environment with a Python {library.wanted}"
        yield Finding("problem", library.name, what, do)
    python = f"{machine.python.version}, {machine.system}"
    if not machine.libraries:
        yield Finding("note", "Python", f"{python}; versions not compared", "pip install -e .")
    elif not wrong:
        count = len(machine.libraries)
        yield Finding("ok", "Python", f"{python}; {count} libraries, each in its range")


def _fits(library: Library) -> bool:
    wanted = SpecifierSet(library.wanted)
    return library.version is not None and wanted.contains(library.version, prereleases=True)


def _folders(machine: Machine) -> Findings:
    yield from _folder("data/, runs/", machine.home, "PRESSROOM_HOME", must=True)
    yield from _folder("hub cache", machine.hub_cache, "HF_HOME")
    yield from _folder("temporary", machine.temporary, "TMPDIR")


def _folder(subject: str, folder: Folder, variable: str, *, must: bool = False) -> Findings:
    do = f"make room, or set {variable} to a folder on another disk"
    what = f"{folder.free_gib:.1f} GiB free in {folder.path}"
    if not folder.writable:
        what = f"{folder.path} cannot be written to"
        yield Finding("problem" if must else "note", subject, what, f"set {variable} to another")
    elif folder.free_gib < 5:
        yield Finding("problem" if must and folder.free_gib < 1 else "note", subject, what, do)
    else:
        yield Finding("ok", subject, what)


def _host(machine: Machine) -> Findings:
    yield Finding("ok", "host", f"{machine.memory_gib:.0f} GiB of memory free")
    if machine.shm_gib < 1:
        several = len(machine.stack.gpus) > 1
        what = f"{machine.shm_gib} GiB: NCCL and data loaders share memory there"
        do = "in a container: --shm-size=16g, or --ipc=host"
        yield Finding("problem" if several else "note", "/dev/shm", what, do)
    if 0 <= machine.open_files < 1024:
        yield Finding("note", "open files", f"at most {machine.open_files}", "ulimit -n 4096")


def _environment(machine: Machine) -> Findings:
    subject = "environment"
    if machine.slow:
        names = " ".join(machine.slow)
        yield Finding("note", subject, f"{names}: slows training down", f"unset {names}")
    if machine.ranks:
        names = " ".join(machine.ranks)
        what = f"{names}, left by another launcher: training would take itself for one of its ranks"
        yield Finding("problem", subject, what, f"unset {names}")
    if machine.accelerate:
        names = " ".join(machine.accelerate)
        what = f"{names}: accelerate takes its options from there too"
        yield Finding("note", subject, what, f"unset {names}")
    if machine.shadows:
        what = f"PYTHONPATH leads to others' {', '.join(machine.shadows)}"
        yield Finding("problem", subject, what, "take that folder out of PYTHONPATH")
    if machine.shadows_here:
        what = f"`python -m` here takes {', '.join(machine.shadows_here)} for ours"
        do = "start by `pressroom`, or set PYTHONSAFEPATH=1"
        yield Finding("note", subject, what, do)


RULES = (_versions, _folders, _host, _environment)
