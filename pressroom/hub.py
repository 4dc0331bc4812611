"""Files of a hub's repository: listed, brought here once through `huggingface_hub`, found offline.

What is in the cache needs no network. A file that is whole is never fetched again; inside one
process a broken connection goes on where it stopped. Knows nothing of what is in the files, and
runs no code that came with them.
"""

import contextlib
import errno
import glob
import shutil
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pressroom.console import Progress, UserError

PREFIX = "hub:"
"""How an entry of `data.articles` begins that names a data set of a hub."""


@dataclass(frozen=True)
class Repo:
    """A repository at a revision."""

    kind: Literal["model", "dataset"]
    id: str
    revision: str
    key: str
    """The recipe key that names it, for errors."""

    @property
    def page(self) -> str:
        """Where a person reads about it and accepts its licence."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    repo: Repo
    commit: str
    sizes: dict[str, int]
    """File -> bytes."""


def parse(entry: str) -> tuple[Repo, str]:
    """`hub:ORG/NAME[@REVISION][/GLOB]` -> the data set, and the glob or "".

    Raises:
        ValueError: Says what is wrong with it.
    """
    from huggingface_hub import parse_hf_uri

    try:
        uri = parse_hf_uri(f"hf://datasets/{entry.removeprefix(PREFIX)}")
    except ValueError as error:
        reason = str(error).partition("'. ")[2].strip() or str(error)
        raise ValueError(f"is not {PREFIX}ORG/NAME[@REVISION][/GLOB]: {reason}") from None
    return Repo("dataset", uri.id, uri.revision or "main", "data.articles"), uri.path_in_repo


def listing(repo: Repo) -> Listing:
    """The files of a repository.

    A branch is looked up at the hub, or else is what it was when it was last seen here.

    Raises:
        UserError: The hub does not give it, and it is not in the cache.
    """
    from huggingface_hub import HfApi, RepoFile, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    api = HfApi()
    with _explained(repo):
        revision = api.resolve_revision(repo.id, repo_type=repo.kind, revision=repo.revision)
        commit = revision.resolved
        try:
            tree = get_cached_repo_tree(repo.id, repo_type=repo.kind, revision=commit)
        except CachedRepoTreeNotFoundError:
            try:
                found = api.list_repo_tree(
                    repo.id, repo_type=repo.kind, revision=commit, recursive=True
                )
                tree = [file for file in found if isinstance(file, RepoFile)]
            except Exception:
                sizes = _in_cache(repo, commit)
                if not sizes:
                    raise
                return Listing(repo, commit, sizes)
    return Listing(repo, commit, {file.path: file.size for file in tree})


def _in_cache(repo: Repo, commit: str) -> dict[str, int]:
    """Files of a commit that lie here, brought by a client that kept no listing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repo.id, repo_type=repo.kind, revision=commit, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return {}
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def fetch(found: Listing, names: Collection[str]) -> Path:
    """Bring files of a listing here, those that are not here yet.

    Returns:
        The folder in which the files lie by their names.

    Raises:
        UserError: The disk is too small for them, or the hub does not give them.
    """
    from huggingface_hub import constants, snapshot_download

    repo, commit, cache = found.repo, found.commit, Path(constants.HF_HUB_CACHE)
    size = missing_bytes(found, names)
    with _explained(repo):
        _check_room(repo, size, cache)
        with Progress(f"download {repo.id}", size >> 20, "MiB") as progress:
            folder = snapshot_download(
                repo.id,
                repo_type=repo.kind,
                revision=commit,
                allow_patterns=[glob.escape(name) for name in names],
                tqdm_class=_counted_by(progress),
            )
    return Path(folder)


def missing_bytes(found: Listing, names: Collection[str]) -> int:
    """Bytes of those files that are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    def is_here(name: str) -> bool:
        repo = found.repo
        path = try_to_load_from_cache(repo.id, name, revision=found.commit, repo_type=repo.kind)
        return isinstance(path, str)

    return sum(found.sizes[name] for name in names if not is_here(name))


def _check_room(repo: Repo, size: int, cache: Path) -> None:
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"{repo.key}: {repo.id} takes {size / 2**30:.1f} GiB more in {cache}, which has "
            f"{free / 2**30:.1f} GiB free: {(size - free) / 2**30:.1f} GiB are missing. Make room, "
            "or set HF_HUB_CACHE to a folder on a larger disk"
        )


def _counted_by(progress: Progress) -> Any:
    """A bar for the hub's client that shows nothing, and counts what is written into ours."""
    from huggingface_hub.utils.tqdm import tqdm

    counting = threading.Lock()
    counted = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # The client has a second bar for the network, and a third for the number of files.
            self._counts = kwargs.get("name") == "huggingface_hub.snapshot_download"
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal counted
            if self._counts:
                with counting:
                    before, counted = counted >> 20, counted + int(n or 0)
                    if counted >> 20 != before:
                        progress.advance((counted >> 20) - before)

    return Bar


@contextlib.contextmanager
def _explained(repo: Repo) -> Iterator[None]:
    """Turn what the hub's client raises, many kinds by what went wrong, into a user's error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(f"{repo.key}: {_explain(repo, error)}") from None


def _explain(repo: Repo, error: Exception) -> str:
    from huggingface_hub import errors, get_token

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    at = "" if repo.revision == "main" else f"@{repo.revision}"
    what = f"{repo.id}{at}" if repo.kind == "model" else "RECIPE"
    elsewhere = (
        f"Where there is a network, `pressroom download {what}` brings it once, and prints what "
        "to write in the recipe for nodes without one"
    )
    account = "a token of your account in the environment's HF_TOKEN"

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(item, kinds) for item in chain)

    token = "is set" if get_token() else "is not set"
    if is_a(errors.GatedRepoError):
        return (
            f"{repo.id} is gated, and the hub did not let you in (HF_TOKEN {token}): accept its "
            f"licence at {repo.page}, wait until that is granted, and put {account}. {elsewhere}"
        )
    if is_a(errors.RepositoryNotFoundError):
        return (
            f"the hub has no {repo.kind} {repo.id}, or it is private: see {repo.page}; for a "
            f"private one put {account} (it {token})"
        )
    if is_a(errors.RevisionNotFoundError):
        return f"{repo.id} has no revision {repo.revision}: see {repo.page}"
    if any(getattr(getattr(e, "response", None), "status_code", 0) == 401 for e in chain):
        return f"the hub does not take the token in HF_TOKEN: put {account}, or none"
    if is_a(errors.OfflineModeIsEnabled):
        return (
            f"{repo.id} at {repo.revision} is not whole in this machine's cache, and "
            f"HF_HUB_OFFLINE forbids to ask the hub. {elsewhere}"
        )
    reason = (str(chain[-1]).strip() or type(chain[-1]).__name__).splitlines()[0]
    return f"the hub did not give {repo.id} ({reason}); try again. {elsewhere}"
