"""The GPUs of this machine, or its CPU, as the planner knows them; a recipe settled for them.

Knows nothing of how training starts.
"""

import os
from dataclasses import replace

from pressroom.base_model import geometry_of
from pressroom.cluster import Cluster
from pressroom.console import log
from pressroom.gpus import ask_driver, count_gpus
from pressroom.planner.choice import Gpus, option
from pressroom.planner.fits import advice, resolve
from pressroom.planner.gpu_kinds import KINDS, GpuKind, kind_for, kind_of
from pressroom.recipe import Recipe

CPU_TFLOPS = 0.08
"""Of one core, in bf16 and fp32 products of a small model. Measured on one kind of CPU: rough."""


def local_gpus() -> Gpus | None:
    """What a run on this machine would have; None without a GPU."""
    driver, count = ask_driver(), count_gpus()
    if driver is None or not driver.gpus or not count:
        return None
    return Gpus(kind=kind_or_like(driver.gpus[0], driver.memory_gib), gpus_per_node=count)


def kind_or_like(name: str, memory_gib: float) -> GpuKind:
    """The kind of a GPU; one that is not in the table has its own memory and a neighbour's rates.

    Args:
        name: What its driver calls it.
        memory_gib: What it has.
    """
    known = kind_for(name, memory_gib)
    if known:
        return known
    like = min(KINDS.values(), key=lambda kind: abs(kind.memory_gib - memory_gib))
    return replace(
        like,
        name=name,
        memory_gib=memory_gib,
        source=f"memory as the driver says; rates of {like.name}, the nearest in memory",
    )


def gpus_of(cluster: Cluster) -> Gpus:
    """What a training job on a cluster has; without GPUs, CPUs like this machine's."""
    if cluster.gpu is None or not cluster.gpus_per_node:
        memory = cluster.memory_gib or available_gib()
        return Gpus(kind=cpu(memory), nodes=cluster.nodes)
    kind = kind_of(cluster.gpu)
    return Gpus(kind=kind, nodes=cluster.nodes, gpus_per_node=cluster.gpus_per_node)


def available_gib() -> float:
    """Memory of this host."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def cpu(memory_gib: float) -> GpuKind:
    """This machine's CPU as if it were a GPU: its speed is rough, its memory the host's."""
    return GpuKind(
        name="cpu",
        memory_gib=memory_gib,
        tflops=CPU_TFLOPS * len(os.sched_getaffinity(0)),
        gb_per_second=10,
        link_gb_per_second=1,
        host_gb_per_second=10,
        network_gb_per_second=1,
        has_bf16=True,
        torch_names=(),
        source="two cores of one server: rough",
    )


def settle(recipe: Recipe, *, nodes: int = 1) -> Recipe:
    """Fill in what is `auto` for this machine, and warn where the planner says it will not fit.

    Args:
        recipe: What is to be trained.
        nodes: Machines like this one that train it together; of one alone as many GPUs are used as
            the batch divides over.

    Raises:
        UserError: Something is `auto` and nothing fits, or the model is not there.
    """
    here = local_gpus()
    if not recipe.autos and not here:
        return recipe
    gpus, batch = here or Gpus(kind=cpu(available_gib())), recipe.batch
    micro = 1 if batch.micro_batch_size == "auto" else batch.micro
    counts = range(1, gpus.count + 1)
    if nodes == 1:
        ranks = max(n for n in counts if n == 1 or batch.global_batch_size % (micro * n) == 0)
        gpus = gpus.but(gpus_per_node=ranks)
    gpus, geometry = gpus.but(nodes=nodes), geometry_of(recipe.model)
    settled, reasons = resolve(recipe, geometry, gpus)
    for reason in reasons:
        log.info("auto: %s", reason)
    if here and not option(settled, geometry, gpus).plan.fits:
        log.warning("the planner says that this will not fit; %s", advice(recipe, geometry, gpus))
    return settled
