"""The files that one entry of `data.articles` names.

An entry is a file, a glob, a folder written by `datasets`' save_to_disk, or `hub:ORG/NAME`.
Knows nothing of what is in the files but their suffix.
"""

import difflib
import json
import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pressroom import hub
from pressroom.console import UserError, log
from pressroom.files import home

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".arrow")
"""Files that `data_prep` reads."""
_TRAIN = re.compile(r"(^|[-._ 0-9/])train(ing)?([-._ 0-9/]|$)")
"""How the hub knows a file of the train split: the word stands alone somewhere in its path."""


def find(entry: str) -> dict[str, Path]:
    """The files of an entry, in order.

    Returns:
        Name -> path. A name is relative to home where the file lies there, and
        `hub:ORG/NAME@COMMIT/FILE` for one of a hub: the same on every machine.

    Raises:
        UserError: Naming everything that is wrong.
    """
    if entry.startswith(hub.PREFIX):
        return _of_hub(entry)
    path = home() / Path(entry).expanduser()
    if path.exists():
        found = [path]
    else:
        try:
            found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        except ValueError as error:
            raise UserError(f"data.articles: {entry}: {error}") from None
    if not found:
        raise UserError(f"data.articles: {entry}: no such file (in {home().absolute()})")
    files = [file for match in found for file in (_of_folder(match) if match.is_dir() else [match])]
    if len(files) > 1:  # a glob over what a fetcher leaves: a quiet day's file is no mistake
        for empty in [file for file in files if file.is_file() and not file.stat().st_size]:
            log.warning("%s: is empty", empty)
            files.remove(empty)
    problems = [
        f"data.articles: {file}: is empty"
        if file.is_file()
        else f"data.articles: {file}: {'is not a file' if file.exists() else 'no such file'}"
        for file in files
        if not file.is_file() or file.stat().st_size == 0
    ]
    problems += [_unreadable(file) for file in files if file.suffix not in SUFFIXES]
    if problems:
        raise UserError("\n".join(problems))
    return {_name(file): file for file in files}


def _unreadable(file: Path) -> str:
    table = file.suffix in (".csv", ".tsv", ".json")
    hint = "; pandas makes one: read it, then to_parquet" if table else ""
    return f"data.articles: {file}: unknown kind of file; known: {', '.join(SUFFIXES)}{hint}"


def _name(path: Path) -> str:
    return str(path.relative_to(home()) if path.is_relative_to(home()) else path)


def _of_folder(folder: Path) -> list[Path]:
    """The files of a folder that `datasets` wrote, as its state.json lists them."""
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
            names = " or ".join(str(folder / split) for split in splits)
            raise UserError(f"data.articles: {folder}: holds several splits: name {names}")
        if not (folder / "state.json").is_file():
            raise UserError(
                f"data.articles: {folder}: is not a file, nor a folder that datasets' save_to_disk "
                "wrote; for the files in it write a glob"
            )
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"data.articles: {folder}: not as datasets wrote it: {error!r}") from None


def _of_hub(entry: str) -> dict[str, Path]:
    try:
        repo, pattern = hub.parse(entry)
    except ValueError as error:
        raise UserError(f"data.articles: {entry}: {error}") from None
    found = hub.listing(repo)
    names = choose(entry, pattern, found.sizes)
    folder = hub.fetch(found, names)
    return {f"{hub.PREFIX}{repo.id}@{found.commit}/{name}": folder / name for name in names}


def choose(entry: str, pattern: str, files: Collection[str]) -> list[str]:
    """The files of a hub's data set that are read, sorted.

    With a glob those that match it (`*` goes over folders too). Without one those whose path
    says train, as the hub knows splits, else all; they must lie in one folder and be of one
    kind, for a second kind or folder is as a rule the same articles again, or another
    configuration.

    Raises:
        UserError: None fit, or it is not clear which are meant.
    """
    readable = sorted(name for name in files if name.endswith(SUFFIXES))
    if pattern:
        chosen = sorted(name for name in files if fnmatchcase(name, pattern))
        unread = [name for name in chosen if name not in readable]
        if unread:
            raise UserError(
                f"data.articles: {entry}: {', '.join(unread[:3])}: unknown kind of file; known: "
                f"{', '.join(SUFFIXES)}"
            )
        if not chosen:
            close = difflib.get_close_matches(pattern, readable, n=1) or readable[:3]
            hint = f"; it has {', '.join(close)}" if close else ""
            raise UserError(f"data.articles: {entry}: no file of that name{hint}")
        return chosen
    chosen = [name for name in readable if _TRAIN.search(name)] or readable
    if not chosen:
        raise UserError(
            f"data.articles: {entry}: it has no file of a known kind ({', '.join(SUFFIXES)}); the "
            f"hub's own conversion may be at {entry}@refs/convert/parquet"
        )
    groups = {str(PurePosixPath(n).parent / f"*{PurePosixPath(n).suffix}") for n in chosen}
    if len(groups) > 1:
        ways = ", ".join(f"{entry}/{group}" for group in sorted(groups)[:5])
        raise UserError(f"data.articles: {entry}: has several kinds or folders: name one: {ways}")
    return chosen
