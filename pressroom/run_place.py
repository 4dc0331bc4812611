"""Where a run lies: alone under `runs/`, or as a point in the folder of an experiment.

    runs/NAME/STAMP/                  a run
    experiments/NAME/STAMP/POINT/     a run too; `experiment.json` stands above it

What is submitted together lies above the points. Knows nothing else of what is in a run.
"""

from dataclasses import dataclass
from pathlib import Path

EXPERIMENT = "experiment.json"
"""What makes a folder an experiment."""


@dataclass(frozen=True)
class RunPlace:
    """A run's folder, and what follows from where it is."""

    path: Path

    @property
    def is_point(self) -> bool:
        """Whether it lies in an experiment."""
        return (self.path.parent / EXPERIMENT).is_file()

    @property
    def title(self) -> str:
        """What users call it: NAME/STAMP, a point NAME/STAMP/POINT."""
        return "/".join(self.path.absolute().parts[-3 if self.is_point else -2 :])

    @property
    def home(self) -> Path:
        """Where `data/` and `runs/` were when it was trained."""
        return self.path.parents[3 if self.is_point else 2]

    @property
    def code(self) -> Path:
        """The code as it was at submission; what SLURM starts runs from here.

        All points of an experiment run the same.
        """
        return (self.path.parent if self.is_point else self.path) / "code"

    @property
    def submission(self) -> Path:
        """What was handed to SLURM; for its owner alone, for it holds pickles."""
        return self.path / "submission"

    @property
    def submissions(self) -> tuple[Path, ...]:
        """Its own, and that of the experiment whose points were submitted together."""
        together = (self.path.parent / "submission",) if self.is_point else ()
        return (self.submission, *together)

    def job_log(self, job: str, node_rank: int) -> Path:
        """What a job, or one task of an array, said on one of its nodes, beside its ranks."""
        name = f"{job}_{node_rank}_log.out"  # submitit's
        found = [folder / name for folder in self.submissions if (folder / name).is_file()]
        return found[0] if found else self.submission / name

    @property
    def given_up(self) -> Path:
        """Why the experiment that a run is in ended it early: others were better."""
        return self.path / "given_up.json"
