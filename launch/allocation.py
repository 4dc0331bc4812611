"""What SLURM has given this job, read from the environment of a task.

Counts, ranks and addresses come from here, never from a file. Knows nothing of recipes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from submitit.slurm.slurm import SlurmParseException, _parse_node_list

from launch.command import Node
from pressroom.console import UserError

FIRST_PORT, PORTS = 10_000, 10_000
"""Two ports a job, below those that the system hands out by itself."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One task of a job: one a node."""

    job: str
    restart: int
    """How often SLURM has queued the job again."""
    hosts: tuple[str, ...]
    """Of all nodes, in the order of their ranks."""
    node_rank: int
    num_gpus: int
    """That SLURM says this node has for the job."""
    num_cpus: int
    """That this process may use."""
    port: int
    """Where the ranks meet; the nodes meet one port above."""
    task: str = ""
    """Of an array: what SLURM calls this task of it, `12_3`."""

    @property
    def name(self) -> str:
        """The job, or its task: the first task's number is all of the array's."""
        return self.task or self.job

    @property
    def host(self) -> str:
        """This node."""
        return self.hosts[self.node_rank]


def allocation(environment: Mapping[str, str]) -> Allocation:
    """Read what SLURM says.

    Raises:
        UserError: This is no task of a job, or there are several on a node.
    """
    try:
        hosts = tuple(_parse_node_list(environment["SLURM_STEP_NODELIST"]))
        job, tasks = environment["SLURM_JOB_ID"], int(environment["SLURM_STEP_NUM_TASKS"])
        node_rank, step = int(environment["SLURM_NODEID"]), environment.get("SLURM_STEP_ID", "0")
    except (KeyError, ValueError, SlurmParseException) as error:
        raise UserError(
            f"not a task of a SLURM job ({error}): start it with srun, as slurm/*.sh do; "
            "`pressroom train` is for this machine"
        ) from None
    if tasks != len(hosts):
        raise UserError(
            f"{tasks} tasks on {len(hosts)} nodes: must be one a node: --ntasks-per-node=1"
        )
    array = [environment.get(f"SLURM_ARRAY_{name}", "") for name in ("JOB_ID", "TASK_ID")]
    array = array if all(array) else []
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    gpus = environment.get("SLURM_GPUS_ON_NODE") or len([g for g in visible.split(",") if g])
    return Allocation(
        job=job,
        restart=int(environment.get("SLURM_RESTART_COUNT", 0)),
        hosts=hosts,
        node_rank=node_rank,
        num_gpus=int(gpus),
        num_cpus=len(os.sched_getaffinity(0)),
        port=port_of(int(job), int(step) if step.isdigit() else 0),
        task="_".join(array) if array else "",
    )


@dataclass(frozen=True, kw_only=True)
class Share:
    """One of the tasks that share a stage's work: of an array, else the job alone."""

    job: str
    """Of all of them; the same when one is queued again."""
    task: int | None
    """Its number in the array, as SLURM's names and logs have it; None: there is no array."""
    index: int
    count: int
    num_cpus: int
    """For it alone."""

    @property
    def name(self) -> str:
        """What SLURM and submitit call it."""
        return self.job if self.task is None else f"{self.job}_{self.task}"

    @property
    def options(self) -> list[str]:
        """Of `data_prep.prepare`."""
        return [
            *("--num-workers", str(self.num_cpus)),
            *("--group", f"job {self.job}", "--task", f"{self.index}/{self.count}"),
        ]


def share(environment: Mapping[str, str]) -> Share:
    """Which of the tasks that share a stage's work this is.

    In an array with gaps that no step explains, as `1,3,4`, two tasks may have the same index:
    each claims what nobody else does, so nothing hangs on it.

    Raises:
        UserError: This is no job.

    >>> array = {"ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "7", "ARRAY_TASK_MIN": "3",
    ...          "ARRAY_TASK_COUNT": "4", "ARRAY_TASK_STEP": "2", "CPUS_PER_TASK": "8"}
    >>> share({"SLURM_JOB_ID": "42"} | {f"SLURM_{k}": v for k, v in array.items()}).options
    ['--num-workers', '8', '--group', 'job 40', '--task', '2/4']
    """
    if "SLURM_JOB_ID" not in environment:
        raise UserError("not a SLURM job: start it with sbatch, as slurm/*.sh are")
    cpus = int(environment.get("SLURM_CPUS_PER_TASK") or len(os.sched_getaffinity(0)))
    if "SLURM_ARRAY_JOB_ID" not in environment:
        job = environment["SLURM_JOB_ID"]
        return Share(job=job, task=None, index=0, count=1, num_cpus=cpus)
    task, first, count, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}") or default)
        for name, default in (("ID", 0), ("MIN", 0), ("COUNT", 1), ("STEP", 1))
    )
    index = (task - first) // max(step, 1) % count
    job = environment["SLURM_ARRAY_JOB_ID"]
    return Share(job=job, task=task, index=index, count=count, num_cpus=cpus)


def port_of(job: int, step: int = 0) -> int:
    """A port of a job's step: jobs that share a node have ids that are near each other.

    >>> port_of(41), port_of(42), port_of(42, step=1)
    (10082, 10084, 12102)
    """
    return FIRST_PORT + 2 * ((job + 1009 * step) % PORTS)


def node_of(here: Allocation, num_gpus: int) -> Node:
    """This task's node among those that train.

    Args:
        here: The job.
        num_gpus: Of this node, and of each other.
    """
    return Node(
        rank=here.node_rank,
        count=len(here.hosts),
        num_gpus=num_gpus,
        num_cpus=here.num_cpus,
        address=here.hosts[0],
        port=here.port,
    )
