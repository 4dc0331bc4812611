"""Merged shards onto the disk: slices of rows computed on all cores, each written to its place.

No tensor and no shard is ever held: a shard's header is known beforehand, so every slice has its
place in the file. A finished shard has a receipt, and a later call keeps it where it would be made
the same way. Knows nothing of where weights come from, nor of what else lies in the folder.
"""

import os
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from generate.merge_plan import Placed, Shard
from generate.merge_rows import Merged
from pressroom.console import Progress, UserError, log
from pressroom.files import publish_file, publish_json, read_json
from pressroom.nn.base_rows import Rows, slices

_Part = Future[tuple[int, int]]
"""A slice's checksum and bytes, once it is written."""


class Writer:
    """Writes shards into a folder, and knows those that a killed process has finished.

    Args:
        folder: Where they go; what else lies in it is removed.
        receipts: A file beside the folder: what shards are made from, and their checksums.
        about: All that decides their bytes.
        shards: All there will be.
    """

    def __init__(
        self, folder: Path, receipts: Path, about: dict[str, Any], shards: list[Shard]
    ) -> None:
        self._folder, self._receipts, self._about = folder, receipts, about
        self._shards = shards
        folder.mkdir(parents=True, exist_ok=True)
        with _pool() as pool:
            self._made = self._kept(pool)
        for file in folder.iterdir():
            if file.name not in self._made:
                file.unlink()
        if self._made:
            log.info("going on: %d of %d shards are there", len(self._made), len(shards))

    def _kept(self, pool: ThreadPoolExecutor) -> dict[str, int]:
        if not self._receipts.is_file():
            return {}
        left = read_json(self._receipts, "delete it")
        if left.get("about") != self._about:
            return {}
        by_name = {shard.name: shard for shard in self._shards}
        return {
            name: checksum
            for name, checksum in left["shards"].items()
            if name in by_name and _sum_of(self._folder / name, by_name[name], pool) == checksum
        }

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be written."""
        return sum(shard.num_bytes for shard in self._shards if shard.name not in self._made)

    def write(self, merged: Merged, what: str) -> None:
        """Write every shard that is missing.

        Raises:
            UserError: A tensor of the base cannot be read, or the disk is full.
        """
        total = sum(shard.num_bytes for shard in self._shards)
        done = total - self.missing_bytes
        with _pool() as pool, _Megabytes(what, total, done) as progress:
            for shard in self._shards:
                if shard.name in self._made:
                    continue
                with self._told(), publish_file(self._folder / shard.name) as path:
                    try:
                        checksum = _write(path, shard, merged, pool, progress)
                    except BaseException:
                        path.unlink(missing_ok=True)  # it takes room
                        raise
                self._made[shard.name] = checksum
                publish_json(self._receipts, {"about": self._about, "shards": self._made})

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder.parent}: cannot be written to: {error.strerror or error}; "
                f"{len(self._made)} of {len(self._shards)} shards are kept, and the same command "
                "goes on from there"
            ) from error


def _write(
    path: Path, shard: Shard, merged: Merged, pool: ThreadPoolExecutor, progress: "_Megabytes"
) -> int:
    """Write one shard: tensors are opened ahead, and two at a time have slices that are made."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666)
    checksum, parts = 0, deque[list[_Part]]()
    try:
        os.pwrite(descriptor, shard.header, 0)
        progress.advance(len(shard.header))
        for placed, rows in _opened(shard, merged, pool):
            started = slices(placed.shape)
            parts.append(
                [pool.submit(_write_slice, descriptor, placed, rows, *one) for one in started]
            )
            if len(parts) > 2:
                checksum += _wait(parts.popleft(), progress)
        checksum += sum(_wait(part, progress) for part in list(parts))
    finally:  # nobody writes to a descriptor that may be another file's soon
        left = [one for part in parts for one in part]
        for one in left:
            one.cancel()
        futures.wait(left)
        os.close(descriptor)
    return checksum


def _opened(
    shard: Shard, merged: Merged, pool: ThreadPoolExecutor
) -> Iterator[tuple[Placed, Rows]]:
    """A shard's tensors in order; one for each core is opened ahead, for that may be work."""
    ahead = deque[tuple[Placed, Future[Rows]]]()
    for placed in shard.tensors:
        ahead.append((placed, pool.submit(merged.rows, placed.name)))
        if len(ahead) > _cores():
            first, opened = ahead.popleft()
            yield first, opened.result()
    for last, opened in ahead:
        yield last, opened.result()


def _wait(parts: list[_Part], progress: "_Megabytes") -> int:
    """Wait until slices are written; the sum of their checksums."""
    checksum = 0
    for part in parts:
        own, num_bytes = part.result()
        checksum += own
        progress.advance(num_bytes)
    return checksum


def _write_slice(
    descriptor: int, placed: Placed, rows: Rows, first: int, last: int
) -> tuple[int, int]:
    """Make rows, write them to their place; their checksum, and how many bytes they are."""
    content = rows(first, last).cpu().view(-1).view(torch.uint8).numpy().data
    begin = placed.offset + first * (len(content) // (last - first))
    written = 0
    while written < len(content):  # a disk may take a part
        written += os.pwrite(descriptor, content[written:], begin + written)
    return zlib.crc32(content, begin & 0xFFFFFFFF), len(content)


def _sum_of(path: Path, shard: Shard, pool: ThreadPoolExecutor) -> int | None:
    """The checksum of a shard as it lies on the disk; None where it is another, or cut."""
    if not path.is_file() or path.stat().st_size != shard.num_bytes:
        return None
    with path.open("rb") as file:
        if file.read(len(shard.header)) != shard.header:
            return None
        last = shard.num_bytes
        parts = []
        for placed in reversed(shard.tensors):
            size = (last - placed.offset) // placed.shape[0]
            last = placed.offset
            parts += [(placed.offset + a * size, (b - a) * size) for a, b in slices(placed.shape)]

        def check(part: tuple[int, int]) -> int:
            begin, size = part
            return zlib.crc32(os.pread(file.fileno(), size, begin), begin & 0xFFFFFFFF)

        return sum(pool.map(check, parts))


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """A thread a core, each computing alone: a slice is too small to be divided."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(_cores(), initializer=lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class _Megabytes:
    """Progress in bytes, with how many a second."""

    def __init__(self, what: str, total: int, done: int) -> None:
        self._progress = Progress(what, _megabytes(total), "MB", done=_megabytes(done))
        self._done, self._first, self._start = done, done, time.monotonic()

    def __enter__(self) -> "_Megabytes":
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.__exit__()

    def advance(self, num_bytes: int) -> None:
        """Count bytes that were written."""
        before, self._done = _megabytes(self._done), self._done + num_bytes
        speed = (self._done - self._first) / max(time.monotonic() - self._start, 1e-6) / 1e9
        if _megabytes(self._done) > before:
            self._progress.advance(_megabytes(self._done) - before, speed=f"{speed:.2f} GB/s")


def _megabytes(num_bytes: int) -> int:
    return -(-num_bytes // 10**6)
