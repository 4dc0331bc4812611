"""A cluster file held against what its SLURM gives, before anything is queued.

What SLURM does not say is not refused. Knows nothing of recipes.
"""

import difflib
import math
import re
import shutil
from collections.abc import Collection, Iterator, Sequence

from launch.partitions import Nodes, Partition, ask_slurm, limit_minutes, most_tasks, partitions
from pressroom.cluster import Cluster, minutes
from pressroom.console import UserError
from pressroom.planner.gpu_kinds import KINDS

TOOLS = ("sbatch", "srun", "scontrol", "sinfo")
_PASSING = re.compile(r"not available|busy|timed out|unable to contact", re.IGNORECASE)
"""What `sbatch --test-only` says of nodes that are down just now: a job would wait for them."""


def slurm_problems(cluster: Cluster, file: str) -> list[str]:
    """Everything in a cluster file that its SLURM would refuse, or never start.

    Args:
        cluster: The cluster file's values.
        file: Its name, for messages.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return [f"{', '.join(missing)}: no such command: this is no login node of a SLURM cluster"]
    try:
        found = [*misfits(cluster, partitions()), *_too_many(cluster.cpu_jobs.tasks)]
        found = found or list(_refused(cluster))
    except UserError as error:
        return [str(error)]
    return [f"{file}: {problem}" for problem in found]


def misfits(cluster: Cluster, known: dict[str, Partition]) -> Iterator[str]:
    """`key: what is wrong`, of each key that asks for more than a partition gives."""
    jobs = cluster.cpu_jobs
    yield from _closed("partition", cluster.partition, known)
    if jobs.partition:
        yield from _closed("cpu_jobs.partition", jobs.partition, known)
    for partition in _named(cluster.partition, known):
        yield from _too_long("time_limit", cluster.time_limit, partition)
        yield from _training(cluster, partition)
    for partition in _named(jobs.partition or cluster.partition, known):
        yield from _too_long("cpu_jobs.time_limit", jobs.time_limit, partition)
        yield from _above("cpu_jobs.cpus", jobs.cpus, partition.name, partition.nodes)
        yield from _above("cpu_jobs.memory_gib", jobs.memory_gib, partition.name, partition.nodes)


def _named(names: str, known: dict[str, Partition]) -> list[Partition]:
    """Partitions, of `a,b` both: sbatch takes several, and each must be able to start the job."""
    return [known[name] for name in names.split(",") if name in known]


def _closed(key: str, names: str, known: dict[str, Partition]) -> Iterator[str]:
    for name in names.split(","):
        if name not in known:
            yield f"{key}: {_unknown(name, 'partition', known)}"
        elif known[name].state != "up":
            yield f"{key}: {name}: no job starts there: its state is {known[name].state}"


def _unknown(word: str, what: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else f" ({', '.join(sorted(known)) or 'none'})"
    return f"{word}: no such {what}{hint}"


def _too_long(key: str, time_limit: str, partition: Partition) -> Iterator[str]:
    if minutes(time_limit) > limit_minutes(partition.time_limit):
        yield f"{key}: {time_limit} is more than {partition.name} gives: {partition.time_limit}"


def _above(key: str, wanted: int, partition: str, nodes: Sequence[Nodes]) -> Iterator[str]:
    """CPUs, or memory, more than any of the nodes has."""
    field = "memory_gib" if key.endswith("memory_gib") else "cpus"
    most = max((getattr(group, field) for group in nodes), default=math.inf)
    if wanted > most:
        yield f"{key}: {wanted} is more than a node of {partition} has: {math.floor(most)}"


def _too_many(tasks: int) -> Iterator[str]:
    if tasks > 1 and tasks > (most := max(most_tasks(), 1)):  # 0: there are no arrays
        yield f"cpu_jobs.tasks: {tasks} is more than an array may have here: {most}"


def _training(cluster: Cluster, partition: Partition) -> Iterator[str]:
    """What a training job asks of the nodes that match its constraint."""
    name = partition.name
    if not partition.nodes:
        return  # a cloud's nodes may be hidden while they are off
    nodes, unknown = _constrained(cluster.constraint, partition)
    if unknown:
        yield from unknown
        return
    found = list(_gpus(cluster, name, nodes))
    found += _above("cpus_per_node", cluster.cpus_per_node or 0, name, nodes)
    found += _above("memory_gib", cluster.memory_gib or 0, name, nodes)
    yield from found
    suited = sum(
        group.count
        for group in nodes
        if group.num_gpus(cluster.gpu_type) >= cluster.gpus_per_node
        and group.cpus >= (cluster.cpus_per_node or 0)
        and group.memory_gib >= (cluster.memory_gib or 0)
    )
    if not found and cluster.nodes > suited:
        yield f"nodes: {cluster.nodes} is more than {name} has of such nodes: {suited}"
    elif not found and cluster.nodes > partition.most_nodes:
        yield f"nodes: {cluster.nodes} is more than {name} gives one job: {partition.most_nodes}"


def _constrained(
    constraint: str | None, partition: Partition
) -> tuple[tuple[Nodes, ...], list[str]]:
    """The nodes that match a constraint, and why there are none."""
    if constraint is None:
        return partition.nodes, []
    known = {feature for group in partition.nodes for feature in group.features}
    words = re.split(r"[&|,()\[\]]", re.sub(r"\*\d+", "", constraint))
    strange = sorted({word.strip() for word in words} - known - {""})
    what = f"feature of a node in {partition.name}"
    if strange:
        return (), [f"constraint: {_unknown(word, what, known)}" for word in strange]
    nodes = tuple(group for group in partition.nodes if matches(constraint, group.features))
    none = f"constraint: {constraint}: no node of {partition.name} has all of it"
    return nodes, [] if nodes else [none]


def matches(constraint: str, features: Collection[str]) -> bool:
    """Whether a node's features match: all of `a&b`, one of `a|b`; SLURM judges other forms.

    >>> [matches(c, {"a", "b"}) for c in ("a&b", "a,c", "c|a", "[c|d]")]
    [True, False, True, True]
    """
    if re.fullmatch(r"[^|()\[\]*]+", constraint):
        return all(word.strip() in features for word in re.split("[&,]", constraint))
    if re.fullmatch(r"[^&,()\[\]*]+", constraint):
        return any(word.strip() in features for word in constraint.split("|"))
    return True


def _gpus(cluster: Cluster, partition: str, nodes: Sequence[Nodes]) -> Iterator[str]:
    wanted, kind = cluster.gpus_per_node, cluster.gpu_type
    kinds = sorted({name for group in nodes for name in group.gpus if name})
    if not wanted:
        return
    if kind is None and len(kinds) > 1:
        yield f"gpu_type: is required: {partition} has {', '.join(kinds)}"
    elif kind is not None and kind not in kinds:
        yield f"gpu_type: {_unknown(kind, f'kind of GPU in {partition}', kinds)}"
    else:
        most = max(group.num_gpus(kind) for group in nodes)
        if wanted > most:
            yield f"gpus_per_node: {wanted} is more than a node of {partition} has: {most}"
        yield from _other_kind(cluster.gpu, kind or "".join(kinds), partition)


def _other_kind(gpu: str | None, called: str, partition: str) -> Iterator[str]:
    """Where SLURM's name for a GPU is one of ours too, it is to be the one that is planned for."""
    families = {name.partition("-")[0] for name in KINDS}
    family = re.split("[-_]", called.lower())[0]
    if gpu and family in families and family != gpu.lower().partition("-")[0]:
        yield f"gpu: {gpu}, and SLURM calls the GPUs of {partition} {called}"


def _refused(cluster: Cluster) -> Iterator[str]:
    """What SLURM itself says of such a job: account, qos and whatever else it was taught."""
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    options = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": cluster.nodes,
        "time": cluster.time_limit,
        "gpus-per-node": f"{kind}{cluster.gpus_per_node}" if cluster.gpus_per_node else None,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    tried = ask_slurm("sbatch", "--test-only", *given, "--wrap", "true", check=False)
    said = (tried.stderr.strip().splitlines() or [""])[-1].partition("failure: ")[2]
    if tried.returncode and said and not _PASSING.search(said):
        key = next((name for name in ("account", "qos") if name in said.lower()), "partition")
        yield f"{key}: {getattr(cluster, key)}: SLURM refuses such a job: {said}"
