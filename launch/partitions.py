"""What a cluster's partitions give, as SLURM says it.

One call of `sinfo`, which needs no accounting. Knows nothing of what anybody asks for.
"""

import math
import os
import re
import subprocess
from dataclasses import dataclass

from pressroom.cluster import minutes
from pressroom.console import UserError

SECONDS = 15
"""SLURM's own tools tell after 10 s that a controller is away."""
_FORMAT = "%P|%a|%l|%s|%D|%c|%m|%G|%f"


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Nodes of a partition that are alike."""

    count: int
    cpus: int
    memory_gib: float
    gpus: dict[str, int]
    """What SLURM calls a kind of GPU, "" where it has no name -> how many a node has."""
    features: frozenset[str]

    def num_gpus(self, kind: str | None) -> int:
        """GPUs of a node: of one kind, or all."""
        return sum(self.gpus.values()) if kind is None else self.gpus.get(kind, 0)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """What a partition lets a job have."""

    name: str
    state: str
    """`up`, or why no job starts."""
    time_limit: str
    """As sinfo writes it."""
    most_nodes: float
    """Of one job."""
    nodes: tuple[Nodes, ...]


def ask_slurm(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Ask SLURM something that it answers at once.

    Raises:
        UserError: There is no such command, it hangs or, under `check`, failed.
    """
    # sinfo would show what its user's settings say, SINFO_PARTITION alone for one.
    settings = {name: value for name, value in os.environ.items() if not name.startswith("SINFO_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SECONDS, env=settings
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: no such command here: is this a login node?") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]}: SLURM does not answer within {SECONDS} s; `scontrol ping` says whether "
            "its controller is up"
        ) from None
    if check and done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{command[0]}: SLURM does not answer: {lines[-1]}")
    return done


def most_tasks() -> float:
    """How many tasks an array may have; infinite where SLURM does not say.

    Raises:
        UserError: There is no SLURM, or it hangs.
    """
    said = ask_slurm("scontrol", "show", "config", check=False).stdout
    limits = re.findall(r"^MaxArraySize\s*=\s*(\d+)|\bmax_array_tasks=(\d+)", said, re.MULTILINE)
    return min((int(size or tasks) for size, tasks in limits), default=math.inf)


def partitions() -> dict[str, Partition]:
    """Name -> partition, of all that the cluster has.

    Raises:
        UserError: SLURM does not say.
    """
    return parse(ask_slurm("sinfo", "--noheader", "--all", "--exact", "--format", _FORMAT).stdout)


def parse(text: str) -> dict[str, Partition]:
    """Name -> partition, from what sinfo writes in `_FORMAT`."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != len(_FORMAT.split("|")):
            continue  # the heading of a cluster of several
        name, state, limit, size, count, cpus, memory, gres, features = fields
        nodes = Nodes(
            count=_number(count),
            cpus=_number(cpus),
            memory_gib=_number(memory) / 1024,
            gpus=gpus_in(gres),
            features=frozenset(features.split(",")) - {"(null)"},
        )
        most = size.rpartition("-")[2]
        name = name.rstrip("*")
        before = found[name].nodes if name in found else ()
        found[name] = Partition(
            name=name,
            state=state,
            time_limit=limit,
            most_nodes=math.inf if most == "infinite" else _number(most),
            nodes=(*before, nodes) if nodes.count else before,
        )
    return found


def _number(text: str) -> int:
    """`64`, and `64+` where nodes differ."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def gpus_in(gres: str) -> dict[str, int]:
    """Kind -> GPUs of a node, from SLURM's list of its generic resources.

    >>> gpus_in("gpu:a100:4(S:0,2-3),gpu:t4:2,lscratch:2T"), gpus_in("gpu:8"), gpus_in("(null)")
    ({'a100': 4, 't4': 2}, {'': 8}, {})
    """
    found: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = entry.split(":")
        if name == "gpu":
            count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
            kind = rest[0] if rest else ""
            found[kind] = found.get(kind, 0) + count
    return found


def limit_minutes(text: str) -> float:
    """A partition's time limit in minutes.

    >>> limit_minutes("30:00"), limit_minutes("1:30:00"), limit_minutes("2-12:00:00")
    (30, 90, 3600)
    """
    if not text[:1].isdigit():
        return math.inf  # infinite, n/a
    return minutes(text if text.count(":") == 2 else f"0:{text}")
