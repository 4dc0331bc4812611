"""The cluster: what the machine is, apart from any recipe.

One YAML file a cluster, read by `Cluster.load` with the same strictness as a recipe. Knows
nothing of recipes, nor how a job is submitted.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from pressroom import strict_yaml
from pressroom.console import UserError, is_secret_name
from pressroom.planner.gpu_kinds import kind_of
from pressroom.sections import STRICT, Positive

FRUITLESS_STARTS = 3
TimeLimit = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}:\d{2}:\d{2}$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CpuJobs:
    """Where the jobs run that need no GPU: preparation and merging."""

    partition: str | None = None
    """Where they are queued; null: the partition of the GPUs."""
    cpus: Positive = 8
    """CPUs of such a job."""
    memory_gib: Positive = 32
    """Memory of such a job."""
    time_limit: TimeLimit = "8:00:00"
    """As sbatch takes it."""


def _known_gpus(gpu: str | None, gpus_per_node: int) -> Iterator[tuple[str, str]]:
    if gpus_per_node and gpu is None:
        yield "gpu", "is required where gpus_per_node is not 0"
    if gpu is not None:
        try:
            kind_of(gpu)
        except UserError as error:
            yield "gpu", str(error)


def _open_environment(environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name in environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"environment.{name}", "is no name of a variable"
        elif is_secret_name(name):
            yield f"environment.{name}", "is a secret: export it in the shell that submits instead"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cluster:
    """A partition of a SLURM cluster, as its users see it."""

    partition: str
    """Where jobs are queued."""
    account: str | None = None
    """Who pays; null where the cluster does not ask."""
    qos: str | None = None
    """Quality of service; null: the partition's own."""
    constraint: str | None = None
    """Features that nodes must have, as sbatch takes them."""
    gpu: str | None = None
    """The kind of GPU, as `pressroom plan` names it: h100, a100-80; null where there are none."""
    gpu_type: str | None = None
    """What SLURM calls it, where a partition has several kinds: `--gpus-per-node=TYPE:8`."""
    nodes: Positive = 1
    """Nodes of a training job."""
    gpus_per_node: Annotated[int, Field(ge=0)]
    """GPUs of a node, one rank each; 0: one rank a node, on its CPUs."""
    cpus_per_node: Positive | None = None
    """CPUs of a node that a job takes; null: what the cluster gives for its GPUs."""
    memory_gib: Positive | None = None
    """Host memory of a node that a training job takes; null: all of it."""
    time_limit: TimeLimit
    """As sbatch takes it: `12:00:00`, `2-00:00:00`. A training goes on in the next job."""
    cpu_jobs: CpuJobs = CpuJobs()
    """Jobs that need no GPU."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on each job's first node before anything else: modules, conda."""
    container: str | None = None
    """What to put before `python`: `apptainer exec --nv pressroom.sif`."""
    python: str | None = None
    """The Python on the nodes; null: the one that submits."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of every job: `NCCL_SOCKET_IFNAME: ib0`. Secrets come from your own environment."""
    shared: tuple[str, ...] = ()
    """Folders that all nodes see; everything a job needs must lie below one. Empty: not checked."""
    node_local: str | None = None
    """A folder on each node's own disk, where the quantized base is copied before training;
    variables of the job are filled in: `/scratch/$SLURM_JOB_ID`."""
    signal_seconds: Positive | None = None
    """How long before its end a training is told to save; null: what the planner says."""
    fruitless_starts: Positive = FRUITLESS_STARTS
    """Starts in a row without a newer checkpoint after which a job is not queued again."""

    rules: ClassVar = (_known_gpus, _open_environment)

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> "Cluster":
        """Read a cluster file.

        Raises:
            UserError: With every problem of the file at once.
        """
        return strict_yaml.load(cls, path, overrides)

    @property
    def world_size(self) -> int:
        """Ranks of a training job."""
        return self.nodes * max(self.gpus_per_node, 1)


def minutes(time_limit: str) -> int:
    """A time limit in minutes, rounded up.

    >>> minutes("1-02:30:01")
    1591
    """
    days, _, rest = time_limit.rpartition("-")
    hours, mins, seconds = map(int, rest.split(":"))
    return int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)
