"""Runs by name: what a user types, and the run directory that it means.

Knows nothing of what is in a run directory but its recipe and whether it has an adapter.
"""

import difflib
from pathlib import Path

from pressroom.console import UserError
from pressroom.files import home
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


def runs_of(name: str = "*") -> list[RunDir]:
    """The runs of a recipe's name, or of all names, newest first."""
    recipes = (home() / "runs").glob(f"{name}/*/recipe.yaml")
    return [RunDir(path.parent) for path in sorted(recipes, key=_stamp, reverse=True)]


def every_run() -> list[RunDir]:
    """All runs, and the points of all experiments, newest first."""
    points = (home() / "experiments").glob("*/*/*/recipe.yaml")
    found = [RunDir(path.parent) for path in points]
    every = [*runs_of(), *(run for run in found if run.is_point)]

    def begun(run: RunDir) -> tuple[str, str]:
        stamp = run.path.parent.name if run.is_point else run.path.name
        return stamp, run.path.name

    return sorted(every, key=begun, reverse=True)


def _stamp(recipe: Path) -> tuple[str, str]:
    return recipe.parent.name, recipe.parent.parent.name


def find_run(run: str, *, trained: bool = False) -> RunDir:
    """A run by its folder or something in it, by NAME/STAMP or STAMP; the newest of NAME.

    A recipe's file stands for its name; NAME/STAMP/POINT is a point of an experiment.

    Args:
        run: What the user typed.
        trained: Take the newest of NAME that has an adapter, and see that a given one has.

    Raises:
        UserError: There is no such run, or it has no adapter yet.
    """
    found = named(run)
    if trained:
        finished = [candidate for candidate in found if candidate.adapter.is_dir()]
        if not finished:
            raise UserError(f"{found[0].path}: has no adapter yet; training is not finished")
        return finished[0]
    return found[0]


def named(run: str) -> list[RunDir]:
    """The run of a folder, NAME/STAMP or STAMP; else all runs of NAME, newest first.

    Raises:
        UserError: There is none.
    """
    runs = home() / "runs"
    if run.endswith((".yaml", ".yml")) and Path(run).is_file():
        run = Recipe.load(run).name
    points = home() / "experiments" / run
    for path in (Path(run), home() / run, runs / run, points, *sorted(runs.glob(f"*/{run}"))):
        for folder in (path, path.parent):
            if path.exists() and (folder / "recipe.yaml").is_file():
                return [RunDir(folder)]
    found = runs_of(Path(run).name)
    if not found:
        for path in (Path(run), runs / run):
            if path.is_dir():
                raise UserError(f"{path}: has no run in it: no recipe.yaml")
        names = sorted(p.name for p in runs.glob("*") if p.is_dir())
        close = difflib.get_close_matches(run, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = f"; runs of: {', '.join(names)}" if names else " (no runs yet)"
        raise UserError(f"{run}: no such run under {runs.absolute()}{hint or known}")
    return found
