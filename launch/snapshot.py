"""The code as it is now, kept with a run: what waits in a queue is not changed by edits.

All of Pressroom's packages, tracked by git or not; from a clone the commit too, and what differs
from it. Knows nothing of recipes.
"""

import importlib.util
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from pressroom.console import redact
from pressroom.files import publish_folder
from pressroom.run_dir import RunDir

PACKAGES = ("pressroom", "data_prep", "train", "launch", "generate", "accelerate_configs")
GIT_SECONDS = 20


def take(run: RunDir) -> None:
    """Copy the code into a run, in place of an older copy."""
    with publish_folder(run.code) as folder:
        for name in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(_place(name), folder / name, ignore=ignored)
        about = [f"pressroom {version('pressroom')}"]
        clone = _place("pressroom").parent
        if found := commit():
            about.append(f"commit {found}")
            (folder / "diff.patch").write_text(redact(_git(clone, "diff", "HEAD")), "utf-8")
            new = _git(clone, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
            about += [f"not tracked {name}" for name in new.split()]
        (folder / "version.txt").write_text("\n".join(about) + "\n", "utf-8")


def commit() -> str:
    """The commit of the clone that this code is in; empty where it is in none."""
    clone = _place("pressroom").parent
    return _git(clone, "rev-parse", "HEAD").strip() if (clone / ".git").exists() else ""


def _place(package: str) -> Path:
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found else None
    assert places, package
    return Path(next(iter(places)))


def _git(clone: Path, *arguments: str) -> str:
    """What git says; nothing where it is missing, or the clone is somebody else's."""
    try:
        return subprocess.run(
            ["git", "-C", str(clone), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=GIT_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
