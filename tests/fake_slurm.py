"""SLURM's commands as scripts that say what a test wants, and remember how they were called."""

import os
import shlex
from pathlib import Path

import pytest

WIDTHS = (20, 24, 12, 24, 24, 160, 400)


def queue_line(
    job: object,
    state: str,
    *,
    reason: str = "None",
    nodes: str = "",
    start: object = "N/A",
    end: object = "N/A",
    restarts: int = 0,
) -> str:
    """A line as squeue prints it."""
    cells = (job, state, restarts, start, end, reason, nodes)
    return "".join(str(c).ljust(w) for c, w in zip(cells, WIDTHS, strict=True)) + "\n"


class FakeSlurm:
    """Commands in a folder of their own, which stands first on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self.says("squeue")
        self.says("sacct", err="Slurm accounting storage is disabled", code=1)
        self.says("scancel")

    def says(self, command: str, out: str = "", err: str = "", code: int = 0) -> None:
        """Have a command say so, to any question."""
        said = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2"
        self.does(command, f"{said}\nexit {code}")

    def does(self, command: str, script: str) -> None:
        """Have a command run a shell script, when it has noted its arguments."""
        noted = f'echo "{command} $*" >> "{self.folder}/calls"'
        new = self.folder / ".new"
        new.write_text(f"#!/bin/sh\n{noted}\n{script}\n")
        new.chmod(0o755)
        new.replace(self.folder / command)  # somebody may be calling it just now

    def calls(self, command: str) -> list[str]:
        """The arguments of each call of a command."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{command} ")]
