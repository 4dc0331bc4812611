"""Files that are complete or invisible: atomic publishing, checksums, the home folder.

Knows nothing of what is in the files.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pressroom.console import UserError


def home() -> Path:
    """Where `data/`, `runs/` and relative paths of a recipe lie: PRESSROOM_HOME, else here."""
    return Path(os.environ.get("PRESSROOM_HOME") or ".")


def require_home() -> None:
    """See that `data/` and `runs/` can be written.

    Raises:
        UserError: They cannot.
    """
    if not (home().is_dir() and os.access(home(), os.W_OK)):
        raise UserError(
            f"{home().absolute()}: not a folder that can be written to; PRESSROOM_HOME says where "
            "data/ and runs/ lie, else the working directory does"
        )


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


def _partial(path: Path) -> Path:
    """The name that a file or folder bears until it is complete."""
    return path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


def publish_text(path: Path, text: str) -> None:
    """`publish_bytes` of a text, in UTF-8."""
    publish_bytes(path, text.encode())


def publish_bytes(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    with publish_file(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Write a file under another name; it takes its own, and another's place, when the block ends.

    Yields:
        The name to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    yield partial
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def publish_json(path: Path, value: Any) -> None:
    """`publish_text` of a JSON value, indented for a person."""
    publish_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, hint: str) -> Any:
    """Read a JSON file that Pressroom or the user has written.

    Args:
        path: The file.
        hint: What to do when it is damaged.

    Raises:
        UserError: It is missing or damaged.
    """
    with readable(path, hint):
        return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def readable(path: Path, hint: str) -> Iterator[None]:
    """Tell of a file or folder that a library could not read, without the library's traceback.

    Raises:
        UserError: The block raised what readers of damaged files raise.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: missing or damaged ({reason}); {hint}") from error


def sizes(path: Path) -> dict[str, int]:
    """Bytes of a file, or of every file in a folder, by name: tells that one was cut or lost."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path.parent)): file.stat().st_size for file in files}


@contextlib.contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name; it takes its own name when the block ends well.

    A folder that stood there before is replaced. When the block raises, nothing is left; what a
    killed process left, the next one here clears.

    Yields:
        The folder to write into, empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.partial-{socket.gethostname()}-*"):
        if not _is_alive(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, path)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def replace_folder(new: Path, path: Path) -> None:
    """Give a complete folder its name, taking the place of one that bore it."""
    for file in [*new.rglob("*"), new]:
        _sync(file)
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.replace(old)
    new.replace(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def lines_until(path: Path, last_step: float = math.inf) -> str:
    """The lines of a JSONL file whose `step` is one up to `last_step`; none where it is not there.

    A line that a kill cut short is none, and neither is one without a step.
    """
    kept = []
    # Not splitlines: it also cuts at characters that JSON strings may contain.
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        with contextlib.suppress(ValueError, KeyError):
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
    return "".join(kept)
