"""A base's 4-bit codes, made once: where they lie, and whether they are whole.

`pressroom quantize` makes them, in the format of transformers, and every job reads them in place
of the model's own weights, from a node's own disk where a job has copied them there. Knows nothing
of how codes are made, copied or read.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pressroom.base_model import model_fingerprint
from pressroom.console import UserError
from pressroom.files import home, read_json, sha256_file, sha256_json
from pressroom.train_sections import Precision, Quantization

FORMAT_VERSION = 1
"""Raised whenever the same weights would give other files."""
STAGED = "PRESSROOM_STAGED"
"""Environment: a folder on the node's own disk that may hold a copy."""
MEND = "delete the folder and run `pressroom quantize` again"


@dataclass(frozen=True)
class Codes:
    """The codes of one model, quantized in one way."""

    folder: Path
    """The model."""
    quantization: Quantization
    precision: Precision
    """Of everything else, and what weights are rounded to before they are quantized."""

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides the bytes, but for the libraries and the device that make them."""
        return {
            "base_fingerprint": model_fingerprint(self.folder),
            "quantization": asdict(self.quantization),
            "precision": self.precision,
            "format_version": FORMAT_VERSION,
        }

    @property
    def place(self) -> Path:
        """Where they lie, or would: `.cache/models/NAME-nf4-HASH` under home."""
        # A hub's cache: models--ORG--NAME/snapshots/COMMIT
        in_hub = self.folder.parent.name == "snapshots"
        repo = self.folder.parents[1].name if in_hub else self.folder.absolute().name
        name, key = repo.split("--")[-1], sha256_json(self.spec)[:12]
        return home() / ".cache" / "models" / f"{name}-{self.quantization.quant_type}-{key}"

    def find(self) -> Path | None:
        """The folder of codes; None where nobody has made them.

        Raises:
            UserError: A file is missing, or has another size than when it was written.
        """
        place = self.place
        if not place.is_dir():
            return None
        shards = read_manifest(place)["shards"]
        _refuse(place, [n for n, s in shards.items() if _size(place / n) != s["bytes"]])
        return place


def find(folder: Path, quantization: Quantization | None, precision: Precision) -> Path | None:
    """`Codes.find` of a recipe that may leave its base as it is."""
    return Codes(folder, quantization, precision).find() if quantization else None


def nearest(folder: Path, quantization: Quantization | None, precision: Precision) -> Path | None:
    """What `find` finds, or a whole copy of it on this node's own disk: what is to be read."""
    place = find(folder, quantization, precision)
    staged = os.environ.get(STAGED)
    copy = Path(staged) / place.name if place and staged else None
    return copy if place and copy and is_copy(copy, place) else place


def is_copy(copy: Path, place: Path) -> bool:
    """Whether a folder is a copy of some codes: the same manifest, and shards of its sizes."""
    try:
        same = manifest(copy).read_bytes() == manifest(place).read_bytes()
    except OSError:
        return False
    shards = read_manifest(place)["shards"]
    return same and all(_size(copy / name) == sums["bytes"] for name, sums in shards.items())


def read_manifest(place: Path) -> dict[str, Any]:
    """What codes were made from, by what, and each shard's bytes and sha256.

    Raises:
        UserError: It is missing or damaged.
    """
    found: dict[str, Any] = read_json(manifest(place), MEND)
    return found


def manifest(place: Path) -> Path:
    """The manifest of a folder of codes."""
    return place / "manifest.json"


def summed(path: Path) -> dict[str, Any] | None:
    """What a manifest says of a file; None where there is no such file."""
    return {"bytes": _size(path), "sha256": sha256_file(path)} if path.is_file() else None


def verify(place: Path) -> None:
    """Hold every byte of the codes against their manifest.

    Raises:
        UserError: Naming every shard that is missing or damaged.
    """
    shards = read_manifest(place)["shards"]
    with ThreadPoolExecutor() as pool:
        found = dict(zip(shards, pool.map(lambda name: summed(place / name), shards), strict=True))
    _refuse(place, [name for name, sums in shards.items() if found[name] != sums])


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _refuse(place: Path, damaged: list[str]) -> None:
    if damaged:
        named = [f"  {n}: {'damaged' if (place / n).is_file() else 'missing'}" for n in damaged]
        raise UserError(f"{place}: {MEND}:\n" + "\n".join(named))
