"""A copy of the quantized base on a node's own disk: read once from the shared one, by one job.

Every rank then reads the copy; `quantized_base.nearest` finds it. Knows nothing of jobs
or nodes.
"""

import hashlib
import shutil
from pathlib import Path

from pressroom.console import Progress, UserError, log
from pressroom.files import publish_folder
from pressroom.locks import lock
from pressroom.quantized_base import MEND, is_copy, read_manifest

CHUNK = 16 * 2**20
"""Bytes read at a time."""


def stage(place: Path, folder: Path) -> Path:
    """Copy a folder of codes to a node's own disk, or see that the copy is there and whole.

    Another job that is at it is waited for.

    Args:
        place: The codes, as `Codes.find` gives them.
        folder: On the node's own disk; made where it is missing.

    Returns:
        The copy: `place`'s name in `folder`.

    Raises:
        UserError: The disk is too small, or `place` is damaged.
        OSError: The folder cannot be written to.
    """
    copy = folder / place.name
    with lock(folder / f".{place.name}.lock", str(copy), waits=True):
        if is_copy(copy, place):
            log.info("%s: copied already", copy)
            return copy
        _require_room(place, folder)
        sums = read_manifest(place)["shards"]
        files = sorted(path for path in place.iterdir() if path.is_file())
        with publish_folder(copy) as partial, Progress("copy the base", len(files), "file") as done:
            for file in files:
                read = _copy(file, partial / file.name)
                if file.name in sums and read != sums[file.name]["sha256"]:
                    raise UserError(f"{place}: {MEND}:\n  {file.name}: damaged")
                done.advance()
    return copy


def _require_room(place: Path, folder: Path) -> None:
    needed = sum(path.stat().st_size for path in place.iterdir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**30:.1f} GiB free, and the quantized base takes "
            f"{needed / 2**30:.1f}: make room, or name another disk as the cluster's node_local, "
            "or none: jobs then read the shared base"
        )


def _copy(source: Path, target: Path) -> str:
    """Copy a file; the SHA-256 of what was read, in hex."""
    read = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            read.update(chunk)
            writer.write(chunk)
    return read.hexdigest()
