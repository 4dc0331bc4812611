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
    )


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
