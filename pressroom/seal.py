"""Whether the files of a dataset are those that were written.

A cut Arrow stream reads as a shorter, valid data set, and a flipped bit passes unseen; so every
file is held against its sha256 in the manifest. Knows nothing of what is in a file.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from pressroom.console import Progress, UserError
from pressroom.dataset import SPLITS, Manifest
from pressroom.files import sha256_file

_MIB = 2**20
_LONG = 1024
"""MiB from which on it takes seconds, and so shows its progress."""


def files_of(manifest: Manifest, splits: Iterable[str] = SPLITS) -> dict[str, str]:
    """The files that a manifest names, without those of other splits: name -> sha256."""
    others = tuple(f"{split}/" for split in set(SPLITS) - set(splits))
    every = manifest.files | {shard.file: shard.sha256 for shard in manifest.shards}
    return {name: every[name] for name in sorted(every) if not name.startswith(others)}


def damages(folder: Path, files: dict[str, str]) -> dict[str, str]:
    """Hold the bytes of some files of a dataset against their sha256, on all cores.

    Returns:
        File -> what is wrong with it, in words, for those that are not as they were written.
    """
    sizes = [_mebibytes(folder / name) for name in files]
    watch = Progress("checksums", sum(sizes), "MiB") if sum(sizes) >= _LONG else nullcontext()
    found = {}
    with ThreadPoolExecutor() as pool, watch as progress:  # hashing lets other threads work
        paths = (folder / name for name in files)
        said = pool.map(_damage, paths, files.values())
        for name, size, what in zip(files, sizes, said, strict=True):
            if what:
                found[name] = what
            if progress:
                progress.advance(size)
    return found


def _mebibytes(path: Path) -> int:
    return 1 + path.stat().st_size // _MIB if path.is_file() else 1


def _damage(path: Path, sha256: str) -> str:
    """What is wrong with a file, in words; nothing where it is whole."""
    if not path.is_file():
        return "missing"
    try:
        return "" if sha256_file(path) == sha256 else "damaged"
    except OSError as error:  # a disk that fails, a permission
        return f"cannot be read ({error.strerror})"


def strangers(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Arrow files that nobody here has written: file -> what is wrong with it.

    They are what a reader that takes `*.arrow` would train on. What is no Arrow file counts for
    nothing, nor do hidden files, nor what `datasets` leaves where somebody maps or sorts rows.
    """
    known = files_of(manifest)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.arrow"))
    return {
        name: "not in the manifest; move it away"
        for name in names
        if name not in known and not Path(name).name.startswith((".", "cache-"))
    }


def require_whole(folder: Path, manifest: Manifest, splits: tuple[str, ...] = SPLITS) -> None:
    """See that a dataset's files, less those of other splits, are as they were written.

    Raises:
        UserError: Naming every file that is not.
    """
    wrong = damages(folder, files_of(manifest, splits)) | strangers(folder, manifest)
    if wrong:
        listed = "\n".join(f"  {name}: {what}" for name, what in wrong.items())
        raise UserError(f"{folder}: delete it and run `pressroom prep`:\n{listed}")
