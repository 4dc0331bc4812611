"""Checkpoints: complete or invisible, checksummed, the last few and the best kept.

A checkpoint holds the adapters and the state of optimizer, scheduler, random numbers and data
position, never the base. Its manifest, written last, has the hash of every file; a folder that
bears a step's name without one is damaged. Knows nothing of when to save.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from pressroom.console import UserError, log
from pressroom.files import publish_bytes, publish_json, replace_folder, sha256_file
from pressroom.run_dir import RunDir

_STEP = re.compile(r"step-(\d{6,})")
_MANIFEST = "manifest.json"
_TORCH_WRITER = re.compile("PytorchStream|inline_container|iostream error")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    world_size: int
    """Ranks that wrote it: each has left the state of its random numbers."""
    strategy: str
    """The strategy in force: one rank is always `ddp`."""
    eval_loss: float | None
    """Held-out loss at this step; None when nothing was evaluated there."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that bears its name."""

    path: Path
    manifest: Manifest


def scratch(run: RunDir) -> Path:
    """Where the trainer writes before it is complete.

    torch keeps optimizer and random numbers as pickles: nobody else may write here.
    """
    run.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
    return run.checkpoints / ".partial"


def clear(run: RunDir) -> None:
    """Drop what killed processes left half written or half deleted; one who holds the lock may."""
    for left in run.checkpoints.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def publish(run: RunDir, manifest: Manifest, *, keep_last: int, keep_best: bool) -> None:
    """Give the checkpoint that the trainer has written its name; drop those that are too old.

    Called by one rank, when all have written. What bears a later step's name, or is damaged, is
    dropped too: training has gone back behind it.
    """
    partial = scratch(run) / f"checkpoint-{manifest.step}"
    publish_json(partial / _MANIFEST, {**asdict(manifest), "files": _hashes(partial)})
    replace_folder(partial, run.checkpoint(manifest.step))
    reached = [c for c in readable(run) if c.manifest.step <= manifest.step]
    kept = {c.path for c in reached[-keep_last:]}
    if keep_best and (lowest := best(reached)):
        kept.add(lowest.path)
    for path in set(_named(run)) - kept:
        dropped = path.with_name(f".{path.name}")  # or a kill would leave one that looks damaged
        try:
            path.replace(dropped)
            shutil.rmtree(dropped)
        except OSError as error:
            log.warning("%s: cannot be removed: %s", path, error)


def record_eval_loss(run: RunDir, step: int, loss: float) -> None:
    """Add the held-out loss to a checkpoint that was saved before it was known, if there is one."""
    path = run.checkpoint(step) / _MANIFEST
    if path.is_file():
        publish_json(path, {**json.loads(path.read_text()), "eval_loss": loss})


def readable(run: RunDir) -> list[Checkpoint]:
    """Checkpoints whose manifest can be read, oldest first; their files may be damaged."""
    found = []
    for path in _named(run):
        try:
            said = json.loads((path / _MANIFEST).read_text())
            said.pop("files")
            found.append(Checkpoint(path, Manifest(**said)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest held-out loss, the first of equals; None where none has any."""
    losses = {c.path: c.manifest.eval_loss for c in checkpoints}
    scored = [c for c in checkpoints if losses[c.path] is not None]
    return min(scored, key=lambda c: losses[c.path] or 0.0, default=None)


def newest(run: RunDir) -> Checkpoint | None:
    """The newest undamaged checkpoint, if there is one; each damaged one is named in a warning."""
    told = {c.path: c for c in readable(run)}
    for path in reversed(_named(run)):
        damage = _damage(path) if path in told else f"no {_MANIFEST}"
        if not damage:
            return told[path]
        log.warning("%s: damaged (%s), passed over", path, damage)
    return None


def _damage(path: Path) -> str:
    """What of a checkpoint differs from its manifest; empty when nothing does."""
    try:
        files: dict[str, str] = json.loads((path / _MANIFEST).read_text())["files"]
        found = _hashes(path)
    except OSError as error:
        return str(error)
    return ", ".join(name for name, sha256 in files.items() if found.get(name) != sha256)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint but its manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _MANIFEST)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(sha256_file, files)
        return {str(f.relative_to(folder)): h for f, h in zip(files, hashes, strict=True)}


def _named(run: RunDir) -> list[Path]:
    """Whatever bears the name of a checkpoint, oldest first."""
    found = [p for p in run.checkpoints.glob("step-*") if _STEP.fullmatch(p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


@contextmanager
def writing(run: RunDir, what: str) -> Iterator[None]:
    """Tell of a disk that is full or failing, without a traceback.

    What is half written is dropped, for it takes the room.

    Raises:
        UserError: The block could not write.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_says(error, scratch(run))
        if not reason:
            raise
        shutil.rmtree(scratch(run), ignore_errors=True)
        last = max((c.manifest.step for c in readable(run)), default=0)
        kept = f"the checkpoint of step {last} is whole" if last else "there is no checkpoint yet"
        raise UserError(
            f"{what} could not be written to {run.path}: {reason}; {kept}, and when this is mended "
            "the same command goes on from there"
        ) from error


def _disk_says(error: BaseException | None, folder: Path) -> str:
    """Why a file could not be written; empty when an error is about something else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            return os.strerror(error.errno)
        if isinstance(error, SafetensorError):
            return str(error)
        if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
            return _probe(folder) or "torch could not write a file of it"
        error = error.__cause__ or error.__context__
    return ""


def _probe(folder: Path) -> str:
    """Why the disk takes no more; torch's writer keeps that to itself."""
    try:
        publish_bytes(folder / "probe", bytes(2**20))
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def strategy_in_force(strategy: str, world_size: int) -> str:
    """What a checkpoint is written under: sharding needs more than one rank."""
    return strategy.removesuffix("_offload") if world_size > 1 else "ddp"


def require_ranks(checkpoint: Checkpoint, strategy: str, world_size: int) -> None:
    """See that these ranks can go on from a checkpoint; say what they cannot restore.

    Raises:
        UserError: They cannot.
    """
    wrote = checkpoint.manifest
    ours = strategy_in_force(strategy, world_size)
    if (wrote.strategy, wrote.world_size) == (ours, world_size):
        return
    ranks = f"{checkpoint.path}: written by {wrote.world_size} ranks, and these are {world_size}"
    if wrote.strategy.startswith("zero"):
        raise UserError(
            f"{ranks}: DeepSpeed divides a checkpoint once and for all. Go on with as many, or "
            "begin anew under another name"
        )
    if wrote.strategy != ours:
        raise UserError(
            f"{ranks}: it was {wrote.strategy}, and now it is {ours}, which cannot read it. Go on "
            "as it was, or begin anew under another name"
        )
    log.warning(
        "%s: rows and steps stay the same; random numbers, which dropout takes, begin anew", ranks
    )
