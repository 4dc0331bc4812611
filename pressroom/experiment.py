"""An experiment on disk: what was asked, and where its runs and results lie.

An experiment is `experiments/NAME/STAMP/` under home. Each of its points is an ordinary run in a
folder of its own; results are read from the runs and from nothing else. Knows nothing of how
points are chosen or run, nor of how results look.
"""

import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pressroom.console import UserError
from pressroom.files import home, publish_json, publish_text, read_json, readable
from pressroom.run_dir import RunDir
from pressroom.run_place import EXPERIMENT

Kind = Literal["scale", "sweep", "size"]
_MEND = "the runs in it are whole: begin the experiment again"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of an experiment, as it was asked for."""

    name: str
    """Of its folder."""
    values: dict[str, Any]
    """What varies from point to point: `ranks`, `repeat`, `model`, or a recipe's key -> value."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """What it changes in the experiment's recipe: dotted key -> plain value."""
    nodes: int = 1
    ranks_per_node: int = 1
    """One a GPU, or on the CPU."""
    foretold: dict[str, Any] = Field(default_factory=dict)
    """The planner's `tokens_per_second_per_gpu`, `peak_gib`, `fits`; the model's `parameters`."""

    @property
    def ranks(self) -> int:
        """GPUs, or CPU ranks, of all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def fits(self) -> bool:
        """Whether the planner lets it be tried."""
        return bool(self.foretold.get("fits", True))


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What was asked."""

    kind: Kind
    name: str
    recipe: dict[str, Any]
    """Resolved, before any point changes it."""
    axes: dict[str, list[Any]]
    """What varies -> its values, in the order in which they were given."""
    points: tuple[Point, ...]
    settings: dict[str, Any]
    """Of the kind."""
    device: str
    """The planner's name of a rank's GPU; `cpu` where ranks run on CPUs."""
    cluster: dict[str, Any] | None
    """The cluster's file; None: this machine."""
    key: str
    """The same for the same question about the same inputs."""
    command: str
    created: str
    versions: dict[str, str]
    commit: str
    """Of the code; empty where it is no clone."""

    def point(self, name: str) -> Point:
        """The point of a run's folder."""
        return next(point for point in self.points if point.name == name)


class Experiment:
    """An experiment's folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, definition: Definition) -> "Experiment":
        """Make a new folder that says what was asked."""
        stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        folder = home() / "experiments" / definition.name
        path, again = folder / stamp, 1
        while path.exists():
            again += 1
            path = folder / f"{stamp}-{again}"
        path.mkdir(parents=True)
        publish_text(path / "base.yaml", yaml.safe_dump(definition.recipe, sort_keys=False))
        publish_json(path / EXPERIMENT, asdict(definition))
        return cls(path)

    @property
    def title(self) -> str:
        """NAME/STAMP."""
        path = self.path.absolute()
        return f"{path.parent.name}/{path.name}"

    @property
    def lock(self) -> Path:
        """Held by the command that carries it out."""
        return self.path / ".lock"

    @property
    def as_unit(self) -> RunDir:
        """The folder as what is submitted together: code, sbatch texts, pickles of all points."""
        return RunDir(self.path)

    @property
    def results(self) -> Path:
        """Rows and points as JSON; `results.csv` has the points."""
        return self.path / "results.json"

    @property
    def table(self) -> Path:
        """A line a point."""
        return self.path / "results.csv"

    @property
    def picture(self) -> Path:
        """All panels side by side."""
        return self.path / "results.png"

    @property
    def report(self) -> Path:
        """The experiment as a page that stands alone."""
        return self.path / "report.html"

    @property
    def best(self) -> Path:
        """The recipe of the best point, ready to run."""
        return self.path / "best.yaml"

    def definition(self) -> Definition:
        """What was asked.

        Raises:
            UserError: The file is missing or damaged.
        """
        plain = read_json(self.path / EXPERIMENT, _MEND)
        with readable(self.path / EXPERIMENT, _MEND):
            return TypeAdapter(Definition).validate_python(plain)

    def run(self, point: Point) -> RunDir:
        """The run of a point, begun or not."""
        return RunDir(self.path / point.name)


def experiments_of(name: str = "*") -> list[Experiment]:
    """The experiments of a name, or of all names, newest first."""
    found = (home() / "experiments").glob(f"{name}/*/{EXPERIMENT}")
    folders = sorted((path.parent for path in found), key=lambda p: p.name, reverse=True)
    return [Experiment(folder) for folder in folders]


def find_experiment(name: str) -> Experiment | None:
    """The experiment of a folder, NAME/STAMP or STAMP; else the newest of NAME; else None.

    Args:
        name: What the user typed.
    """
    under = home() / "experiments"
    for path in (Path(name), home() / name, under / name, *sorted(under.glob(f"*/{name}"))):
        if (path / EXPERIMENT).is_file():
            return Experiment(path)
        if path.is_file() and (path.parent / EXPERIMENT).is_file():
            return Experiment(path.parent)
    found = experiments_of(Path(name).name) if name.strip("./") else []
    return found[0] if found else None


def require_name(name: str) -> None:
    """See that an experiment can be called so.

    Raises:
        UserError: It cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name {name}: must be letters, digits, `.`, `_` and `-` only")
