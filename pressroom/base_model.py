"""Where the pretrained model's files are: a local folder, or a snapshot of a hub repository.

Only names, safetensors and JSON ever come from a hub; no code and no pickles. Knows nothing of
what is done with the files.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pressroom import hub
from pressroom.console import UserError
from pressroom.files import home, read_json, sha256_file, sha256_json
from pressroom.geometry import SIZES, Geometry
from pressroom.hub import Repo
from pressroom.sections import Model

_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
CLIENT_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a client reads besides config.json and weights, where a model has it."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CODE = ("auto_map", "trust_remote_code")
"""Keys that have a client run Python files of the folder or of its repository."""
_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def model_folder(model: Model, *, weights: bool = True) -> Path:
    """The folder that holds the base model.

    Args:
        model: A local folder relative to home, or a hub id, whose files are brought here.
        weights: Whether the safetensors are needed too, or only configuration and tokenizer.

    Raises:
        UserError: It is nowhere, or incomplete.
    """
    local = local_folder(model.base)
    if local.is_dir():
        _check(str(local), [file.name for file in local.iterdir() if file.is_file()], weights)
        return local
    if not is_hub_id(model.base):
        raise UserError(_not_found(local, model.base))
    found, names = _on_hub(model, weights=weights)
    return hub.fetch(found, names)


def require_safe(folder: Path) -> None:
    """See that a folder is a whole model, and that neither a pickle nor code of its own is in play.

    Raises:
        UserError: Naming all that it lacks and all that it asks for.
    """
    problems = [_missing([file.name for file in folder.iterdir() if file.is_file()], weights=True)]
    problems.append(asks_for_code(folder))
    if any(problems):
        raise UserError("\n".join(f"{folder}: {wrong}" for wrong in problems if wrong))


def asks_for_code(folder: Path) -> str | None:
    """Where a model or an adapter asks for Python files of its own; None where it does not."""
    for name in (*_SMALL_FILES, "adapter_config.json"):
        if (folder / name).is_file():
            config = read_json(folder / name, "fetch the folder again")
            for key in _CODE:
                if isinstance(config, dict) and config.get(key):
                    return (
                        f"{name}: {key} asks for code of the model's own, which is never run: it "
                        "could do anything"
                    )
    return None


def geometry_of(model: Model) -> Geometry:
    """The geometry of a recipe's model, without its weights and, for Llama 2, without the hub."""
    folder = local_folder(model.base)
    size = re.search(r"llama-2-(7|13|70)b\b", model.base.lower())
    if size and not folder.is_dir():
        return SIZES[f"{size[1]}b"]
    return Geometry.of(model_folder(model, weights=False))


def bytes_to_download(model: Model) -> int:
    """Bytes of a hub's model that are not here yet; 0 for a folder.

    Raises:
        UserError: The hub does not give it, or it is incomplete.
    """
    if local_folder(model.base).is_dir() or not is_hub_id(model.base):
        return 0
    found, names = _on_hub(model, weights=True)
    return hub.missing_bytes(found, names)


def _on_hub(model: Model, *, weights: bool) -> tuple[hub.Listing, list[str]]:
    found = hub.listing(Repo("model", model.base, model.revision, "model.base"))
    names = [name for name in found.sizes if "/" not in name]
    _check(model.base, names, weights)
    suffixes = (".json", ".jinja", ".safetensors") if weights else (".json", ".jinja")
    return found, [name for name in names if name.endswith(suffixes)]


def _check(place: str, names: Sequence[str], weights: bool) -> None:
    """Refuse a model that lacks files, before anything is brought here or read."""
    if wrong := _missing(names, weights=weights):
        raise UserError(f"model.base: {place} {wrong}")


def _missing(names: Sequence[str], *, weights: bool) -> str | None:
    """What a model's folder lacks, of those that it takes to use it."""
    missing = [name for name in _NEEDED if name not in names]
    reason = ""
    if weights and not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
        for pickled in [name for name in names if name.endswith(_PICKLES)][:1]:
            reason = f" ({pickled} is not read: a pickle can run any code; safetensors cannot)"
    return f"has no {', '.join(missing)}{reason}" if missing else None


def is_hub_id(base: str) -> bool:
    """Whether a base that is no folder here is written as ORGANISATION/NAME."""
    return base.count("/") == 1 and not base.startswith((".", "/", "~"))


def local_folder(base: str) -> Path:
    """Where a base would lie that is a folder: relative to home, `~` understood."""
    return home() / Path(base).expanduser()


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


def _not_found(local: Path, base: str) -> str:
    parent = local.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(local.name, names, n=1)
    hint = f"; did you mean {Path(base).parent / close[0]}?" if close else ""
    return f"model.base: {base}: no such folder (looked for {local.absolute()}){hint}"
