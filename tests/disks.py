"""A disk that is full, and has room again."""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small(folder: Path) -> Iterator[Path]:
    """A folder with a small file system of its own, where that can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> Callable[[], None]:
    """Leave so many bytes on a disk; where it is not small, let no file grow larger than that.

    Returns:
        What makes room again.
    """
    if not disk.is_mount():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    other = disk / "other.bin"
    other.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return other.unlink
