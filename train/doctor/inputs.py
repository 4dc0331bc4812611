"""What of a recipe's model and articles is on this machine, and whether the hub gives the rest.

Looks, and downloads nothing; the hub is asked only for what is absent, and only for a few
seconds. Knows nothing of GPUs.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pressroom import hub, sources
from pressroom.base_model import is_hub_id, local_folder, model_folder
from pressroom.console import UserError
from pressroom.dataset import article_files
from pressroom.geometry import Geometry
from pressroom.recipe import Recipe

_SECONDS = 5.0
"""How long the hub may take to answer."""


@dataclass(kw_only=True)
class Inputs:
    """What is known here of a recipe's model and articles."""

    geometry: Geometry | None = None
    """None: its config.json is not here."""
    absent: dict[str, str] = field(default_factory=dict)
    """Hub id that is not whole in the cache -> why the hub does not give it, or ""."""
    token: bool = False
    """Whether there is a token for the hub; looked up only when something is absent."""
    wrong: list[str] = field(default_factory=list)
    """What is wrong with files that should be here."""


def look(recipe: Recipe, *, offline: bool) -> Inputs:
    """Find out what of a recipe's inputs is here, and whether the hub gives the rest.

    Args:
        recipe: Names the model and the articles.
        offline: Whether the hub may not be asked. It is asked only for what is absent.
    """
    inputs = Inputs()
    base = recipe.model.base
    folder: Path | None = local_folder(base)
    if not local_folder(base).is_dir() and is_hub_id(base):
        folder = _in_cache(base, recipe.model.revision)
        if folder is None or not _is_whole(folder):
            inputs.absent[base] = _refusal(base, "model", recipe.model.revision, offline)
    else:
        with _noting(inputs):
            model_folder(recipe.model)
            if not _is_whole(local_folder(base)):
                raise UserError(f"model.base: {base} lacks files that its index names")
    if folder and (folder / "config.json").is_file():
        with _noting(inputs):
            inputs.geometry = Geometry.of(folder)
    local = tuple(entry for entry in recipe.data.articles if not entry.startswith("hub:"))
    if local:
        with _noting(inputs):
            article_files(replace(recipe, data=replace(recipe.data, articles=local)))
    for entry in recipe.data.articles:
        if entry.startswith(hub.PREFIX) and not _articles_in_cache(entry):
            repo, _ = hub.parse(entry)
            inputs.absent[repo.id] = _refusal(repo.id, "dataset", repo.revision, offline)
    if inputs.absent:
        with contextlib.suppress(Exception):
            from huggingface_hub import get_token

            inputs.token = get_token() is not None
    return inputs


@contextlib.contextmanager
def _noting(inputs: Inputs) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        inputs.wrong += str(error).splitlines()


def _articles_in_cache(entry: str) -> bool:
    """Whether files of a hub's data set are here that preparation would read."""
    repo, pattern = hub.parse(entry)
    folder = _in_cache(repo.id, repo.revision, "dataset")
    if folder is None:
        return False
    files = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    with contextlib.suppress(UserError):
        return bool(sources.choose(entry, pattern, files))
    return False


def _in_cache(repo: str, revision: str, kind: str = "model") -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    try:
        return Path(
            snapshot_download(
                repo,
                repo_type=kind,
                revision=revision,
                local_files_only=True,
                allow_patterns=["*.json"] if kind == "model" else None,
            )
        )
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except Exception:  # not there, or no such id: the hub is asked which
        return None


def _is_whole(folder: Path) -> bool:
    """Whether the safetensors are there, all those that an index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return all((folder / name).is_file() for name in named)


def _refusal(repo: str, kind: str, revision: str, offline: bool) -> str:
    """Why the hub does not give a repository; "" when it does, or may not be asked."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    if offline:
        return ""
    file = "config.json" if kind == "model" else ".gitattributes"
    try:
        url = hf_hub_url(repo, file, repo_type=kind, revision=revision)
        get_hf_file_metadata(url, timeout=_SECONDS)
    except errors.EntryNotFoundError:
        return ""
    except errors.GatedRepoError:
        return "gated, and its licence is not accepted with the token in use"
    except errors.RepositoryNotFoundError:
        return "no such repository, or a private one"
    except errors.RevisionNotFoundError:
        return f"it has no revision {revision}"
    except Exception as error:  # by what is wrong on the way: names, proxies, certificates
        return f"the hub does not answer ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return ""
