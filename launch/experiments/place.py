"""Where points run: this machine, or a cluster; and what shape so many ranks have there.

Without GPUs a "GPU" is a rank on the CPU: several on this machine, one a node on a cluster. Knows
nothing of what is asked of the points.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from launch.command import Node
from launch.local import count_cpus
from pressroom.cluster import Cluster
from pressroom.console import UserError
from pressroom.experiment import Point
from pressroom.planner import here
from pressroom.planner.choice import Gpus
from pressroom.planner.gpu_kinds import GpuKind
from pressroom.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Place:
    """A machine, or a cluster."""

    cluster: Cluster | None
    """None: this machine."""
    file: str = ""
    """The cluster's, for messages."""
    num_gpus: int
    """Of a node; 0: ranks run on CPUs."""
    most_ranks: int
    """Of a node."""
    kind: GpuKind

    @property
    def device(self) -> str:
        """What a rank runs on, as the planner calls it."""
        return self.kind.name

    @property
    def plain(self) -> dict[str, Any] | None:
        """The cluster as JSON values."""
        if self.cluster is None:
            return None
        values: dict[str, Any] = TypeAdapter(Cluster).dump_python(self.cluster, mode="json")
        return values

    def shape(self, ranks: int) -> tuple[int, int]:
        """Nodes, and ranks of each, for so many ranks.

        Raises:
            UserError: There are none such here.
        """
        what = "GPUs" if self.num_gpus else "ranks on CPUs"
        if self.cluster is None and ranks > self.most_ranks:
            raise UserError(f"{ranks} {what}: this machine has {self.most_ranks}")
        if ranks <= self.most_ranks:
            return 1, ranks
        if ranks % self.most_ranks:
            raise UserError(
                f"{ranks} {what}: {self.file} has {self.most_ranks} a node, and only whole nodes "
                "train together"
            )
        return ranks // self.most_ranks, self.most_ranks

    def whole(self, recipe: Recipe) -> tuple[int, int]:
        """Nodes, and ranks of each, of a run that is not asked to have a number of them."""
        if self.cluster:
            return self.cluster.nodes, self.most_ranks
        if not self.num_gpus:
            return 1, 1
        batch = recipe.batch
        micro = 1 if batch.micro_batch_size == "auto" else batch.micro
        counts = range(1, self.num_gpus + 1)
        return 1, max(n for n in counts if n == 1 or batch.global_batch_size % (micro * n) == 0)

    def gpus(self, nodes: int, ranks_per_node: int) -> Gpus:
        """For the planner: ranks on one CPU share its cores."""
        kind = self.kind
        if not self.num_gpus:
            kind = replace(kind, tflops=kind.tflops / ranks_per_node)
        return Gpus(kind=kind, nodes=nodes, gpus_per_node=ranks_per_node)

    def node(self, point: Point) -> Node:
        """This machine, as a point uses it."""
        ranks = point.ranks_per_node
        if self.num_gpus:
            return Node(num_gpus=ranks, num_cpus=count_cpus())
        return Node(num_gpus=0, num_cpu_ranks=ranks, num_cpus=count_cpus())

    def cluster_of(self, nodes: int, ranks_per_node: int) -> Cluster:
        """The cluster as a job of this shape asks for it: of a part of a node a part of its CPUs.

        Memory that nobody has divided is the whole node's: then nobody else disturbs the figures.
        """
        assert self.cluster
        cluster, gpus = self.cluster, ranks_per_node if self.num_gpus else 0

        def part(amount: int | None) -> int | None:
            return amount and max(amount * ranks_per_node // self.most_ranks, 1)

        return replace(
            cluster,
            nodes=nodes,
            gpus_per_node=gpus,
            cpus_per_node=part(cluster.cpus_per_node),
            memory_gib=part(cluster.memory_gib),
        )


def this_machine() -> Place:
    """This machine's GPUs, or its CPUs."""
    found = here.local_gpus()
    if found:
        return Place(cluster=None, num_gpus=found.count, most_ranks=found.count, kind=found.kind)
    kind = here.cpu(here.available_gib())
    cpus = len(os.sched_getaffinity(0))
    return Place(cluster=None, num_gpus=0, most_ranks=cpus, kind=kind)


def on_cluster(cluster: Cluster, file: str) -> Place:
    """A cluster's nodes."""
    return Place(
        cluster=cluster,
        file=file,
        num_gpus=cluster.gpus_per_node,
        most_ranks=max(cluster.gpus_per_node, 1),
        kind=here.gpus_of(cluster).kind,
    )
