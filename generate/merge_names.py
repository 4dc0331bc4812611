"""What a user calls what is to be merged: a run, one of its checkpoints, or an adapter's folder.

Knows nothing of what is in them.
"""

from pathlib import Path

from pressroom.console import UserError
from pressroom.files import home
from pressroom.run_dir import RunDir
from pressroom.runs import find_run


def adapter_and_run(what: str) -> tuple[Path, RunDir | None]:
    """The folder of an adapter, and the run that it is of.

    Args:
        what: A run, as anywhere else, or a folder with an adapter in it.

    Raises:
        UserError: There is none, or the run has no adapter yet.
    """
    for folder in (Path(what), home() / what):
        if (folder / "adapter_config.json").is_file():
            folder = folder.absolute()
            runs = [RunDir(parent) for parent in folder.parents[:2]]
            run = next((run for run in runs if is_run(run)), None)
            return folder, run
    run = run_alone(what)
    return run.adapter, run


def run_alone(what: str) -> RunDir:
    """A run with an adapter; not a folder in it, of which it would stand for another.

    Raises:
        UserError: There is none, or it is a model's or an adapter's folder.
    """
    for folder in (Path(what), home() / what):
        for name, kind in (("config.json", "a model"), ("adapter_config.json", "an adapter")):
            if (folder / name).is_file():
                raise UserError(f"{folder}: is {kind}, not a run")
    return find_run(what, trained=True)


def is_run(folder: RunDir) -> bool:
    """Whether something was trained there: a folder may have a recipe of its reader's in it."""
    return folder.recipe.is_file() and folder.environment.is_file()


def merged_folder(adapter: Path, run: RunDir | None) -> Path:
    """Where the merged model goes unless somebody says."""
    if run is None:
        return adapter.with_name(f"{adapter.name}-merged")
    of_run = adapter == run.adapter
    return run.merged if of_run else run.path / f"merged-{adapter.name}"
