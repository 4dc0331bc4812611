"""Files that are complete or invisible: atomic publishing, checksums, the home folder.

Knows nothing of what is in the files.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def home() -> Path:
    """Where `data/`, `runs/` and relative paths of a recipe lie: PRESSROOM_HOME, else here."""
    return Path(os.environ.get("PRESSROOM_HOME") or ".")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256, in hex, of a JSON value written in one canonical way."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sync(path: Path) -> None:
    """Ask the disk to keep a file, or the entries of a folder, through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def publish_json(path: Path, value: Any) -> None:
    """`publish_text` of a JSON value, indented for a person."""
    publish_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name; it takes its own name when the block ends well.

    A folder that stood there before is replaced. When the block raises, nothing is left.

    Yields:
        The folder to write into, empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        _sync(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, path)


def replace_folder(new: Path, path: Path) -> None:
    """Give a complete folder its name, taking the place of one that bore it."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.replace(old)
    new.replace(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
