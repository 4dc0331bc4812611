"""Where the pretrained model's files are: a local folder, or a snapshot of a hub repository.

Only names, safetensors and JSON ever come from a hub; no code and no pickles. Knows nothing of
what is done with the files.
"""

import difflib
import hashlib
from pathlib import Path

from pressroom.console import UserError
from pressroom.files import home, sha256_file, sha256_json
from pressroom.sections import Model

_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def model_folder(model: Model, *, weights: bool = True) -> Path:
    """The folder that holds the base model.

    Args:
        model: A local folder relative to home, or a hub id.
        weights: Whether the safetensors are needed too, or only configuration and tokenizer.

    Raises:
        UserError: It is nowhere, or incomplete.
    """
    local = home() / model.base
    if local.is_dir():
        folder = local
    elif model.base.count("/") == 1 and not model.base.startswith((".", "/")):
        folder = _snapshot(model, weights=weights)
    else:
        raise UserError(_not_found(local, model.base))
    needed = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if weights and not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise UserError(f"model.base: {folder} has no {', '.join(missing)}")
    return folder


def model_fingerprint(folder: Path) -> str:
    """What tells two base models apart: small files whole, weights by samples of their bytes."""
    small = {name: sha256_file(folder / name) for name in _SMALL_FILES if (folder / name).is_file()}
    weights = {file.name: _sampled(file) for file in sorted(folder.glob("*.safetensors"))}
    return sha256_json([small, weights])[:16]


def _sampled(path: Path) -> str:
    """SHA-256 of a file's size and 64 blocks spread over it: 4 MB of however many GB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(64):
            file.seek(max(size - 2**16, 0) * number // 63)
            digest.update(file.read(2**16))
    return digest.hexdigest()


def _snapshot(model: Model, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(model.base, revision=model.revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds, by what is wrong on the way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.base: {model.base} is not a local folder, and the hub did not give it "
            f"({reason}). Without a network, download it elsewhere and give its folder; a gated "
            "model needs its licence accepted on the hub and HF_TOKEN in the environment"
        ) from None


def _not_found(local: Path, base: str) -> str:
    parent = local.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(local.name, names, n=1)
    hint = f"; did you mean {Path(base).parent / close[0]}?" if close else ""
    return f"model.base: {base}: no such folder (looked for {local.absolute()}){hint}"
