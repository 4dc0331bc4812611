"""The cluster: what the machine is, apart from any recipe.

One YAML file a cluster (`slurm/cluster.example.yaml` explains one), read by `Cluster.load` as
strictly as a recipe. What the file alone can show to be wrong is told here; what SLURM must be
asked for, `launch/capacity.py`. Knows nothing of recipes, nor how a job is submitted.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pressroom import strict_yaml
from pressroom.console import UserError, is_secret_name
from pressroom.planner.gpu_kinds import kind_of
from pressroom.sections import STRICT, Positive, Problems

FRUITLESS_STARTS = 3


def _time_limit(value: Any) -> Any:
    """Let a time limit pass that `minutes` understands and that is not zero."""
    if re.fullmatch(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d", str(value)) and minutes(str(value)):
        return value
    form = "must be hours:minutes:seconds, as in 12:00:00 and 2-00:00:00 (two days)"
    raise PydanticCustomError("time_limit", form)


TimeLimit = Annotated[str, BeforeValidator(_time_limit)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CpuJobs:
    """Where the jobs run that need no GPU: preparation and merging."""

    partition: str | None = None
    """Where they are queued; null: the cluster's `partition`."""
    tasks: Positive = 1
    """Tasks that share preparation, each with these CPUs and this memory, as a job array; 1: a job
    like the others. Each begins when there is room for it."""
    cpus: Positive = 8
    """CPUs of such a job, or task."""
    memory_gib: Positive = 32
    """Memory of such a job, or task."""
    time_limit: TimeLimit = "8:00:00"
    """How long such a job may take."""


def _known_gpus(gpu: str | None, gpus_per_node: int) -> Problems:
    """The planner knows the GPUs."""
    if gpus_per_node and gpu is None:
        yield "gpu", "is required where gpus_per_node is not 0"
    if gpu is not None:
        try:
            kind_of(gpu)
        except UserError as error:
            yield "gpu", str(error)


def _a_cpu_for_each_rank(gpus_per_node: int, cpus_per_node: int | None) -> Problems:
    """Every rank has a CPU of its own."""
    if cpus_per_node and cpus_per_node < gpus_per_node:
        yield "cpus_per_node", f"{cpus_per_node} for {gpus_per_node} GPUs: at least one each"


def _open_environment(environment: dict[str, str]) -> Problems:
    """Variables have names, and are no secrets: the file may be anybody's to read."""
    for name in environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"environment.{name}", "is no name of a variable"
        elif is_secret_name(name):
            yield f"environment.{name}", "is a secret: export it in the shell that submits instead"


def _single_words(
    partition: str,
    account: str | None,
    qos: str | None,
    constraint: str | None,
    gpu_type: str | None,
) -> Problems:
    """Sbatch would take what stands behind a space for something else."""
    values = {"partition": partition, "account": account, "qos": qos}
    for name, value in {**values, "constraint": constraint, "gpu_type": gpu_type}.items():
        if value is not None and not re.fullmatch(r"\S+", value):
            yield name, f"{value!r}: must be one word, without spaces"


def _shell_lines(setup: tuple[str, ...]) -> Problems:
    """`setup` stands behind the first command of a job, where sbatch reads no options."""
    for number, line in enumerate(setup):
        if "#SBATCH" in line:
            yield f"setup.{number}", f"{line}: sbatch would not read it; every option has a key"
        for name in re.findall(r"\b([A-Za-z_]\w*)=(?![\"']?\$)", line):
            if is_secret_name(name.upper()):
                yield f"setup.{number}", f"{name} is a secret: export it in the shell that submits"


def _python_comes_by_itself(container: str | None) -> Problems:
    """`container` stands before the Python."""
    last = (container or "python").split()[-1]
    if container and re.fullmatch(r"(.*/)?python[\d.]*", last):
        yield "container", f"ends in {last}, which is put behind it: leave that out"


def _whole_paths(shared: tuple[str, ...], node_local: str | None) -> Problems:
    """A relative path would be another folder for each job."""
    for number, folder in enumerate(shared):
        if not folder.startswith("/"):
            yield f"shared.{number}", f"{folder}: must be an absolute path, from / on"
    if node_local is not None and not node_local.startswith(("/", "$")):
        yield "node_local", f"{node_local}: must be an absolute path, or begin with a $VARIABLE"


def _time_to_save(time_limit: str, signal_seconds: int | None) -> Problems:
    """A training is told to save after it has started."""
    limit = 60 * minutes(time_limit)
    if signal_seconds and signal_seconds >= limit:
        yield (
            "signal_seconds",
            f"{signal_seconds} is not less than time_limit {time_limit}, {limit} seconds",
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cluster:
    """A partition of a SLURM cluster, as its users see it."""

    partition: str
    """Where jobs are queued: `sinfo -s` lists what there is."""
    account: str | None = None
    """Who is charged; null: your default, or where the cluster does not ask."""
    qos: str | None = None
    """Quality of service; null: the partition's own."""
    constraint: str | None = None
    """Features that the nodes of a training job must have, as sbatch takes them: `hbm&ib`."""
    exclude: str | None = None
    """Nodes that no job may take: `node3,node[7-9]`."""
    reservation: str | None = None
    """Nodes that were reserved for you."""
    gpu: str | None = None
    """The kind of GPU, as `pressroom plan` names it: h100, a100-80; null where there are none."""
    gpu_type: str | None = None
    """What SLURM calls it, where a partition has several kinds: `sinfo -o %G` says gpu:TYPE:8."""
    nodes: Positive = 1
    """Nodes of a training job."""
    gpus_per_node: Annotated[int, Field(ge=0)]
    """GPUs of a node, one rank each; 0: one rank a node, on its CPUs."""
    cpus_per_node: Positive | None = None
    """CPUs of a node that a job takes; null: what the cluster gives for its GPUs."""
    memory_gib: Positive | None = None
    """Host memory of a node that a training job takes; null: all of it."""
    time_limit: TimeLimit
    """Of a job: `12:00:00`, `2-00:00:00` (two days). A training that takes longer goes on after."""
    cpu_jobs: CpuJobs = CpuJobs()
    """Jobs that need no GPU."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on each job's first node before anything else: modules, conda. Each
    stands alone; one that fails ends the job."""
    container: str | None = None
    """What is put before the Python: `apptainer exec --nv pressroom.sif`. It must hold SLURM's
    `scontrol`, or a training that is asked to end is not queued again."""
    python: str | None = None
    """The Python of the nodes, or of the container; null: the one that submits."""
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

    rules: ClassVar = (
        _known_gpus,
        _a_cpu_for_each_rank,
        _open_environment,
        _single_words,
        _shell_lines,
        _python_comes_by_itself,
        _whole_paths,
        _time_to_save,
    )

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
