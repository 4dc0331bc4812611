"""What ranks found of themselves before training, and what is wrong with it.

Pure functions of facts, so that machines nobody here has are tested. Knows nothing of how facts
are gathered.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.roll_call import Problem

SLACK_GIB = 1.0
"""By which a GPU may be fuller than planned: what CUDA and NCCL take differs by their versions."""
LEAVE_OUT = "if it comes again, leave the node out: sbatch --exclude"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of one rank; what is its node's is left to the node's first rank."""

    hung_seconds: float = 0.0
    """How long it has waited for an all-reduce that did not end."""
    all_reduce_error: str = ""
    """What it raised."""
    wrong_parts: Sequence[int] = ()
    """Ranks whose part of its sum is wrong here."""
    all_reduce_ms: float = 0.0
    free_gib: float | None = None
    """Of the GPU, beside what CUDA and NCCL take for this rank."""
    total_gib: float | None = None
    sees_run: bool | None = None
    """Whether the run's folder is there."""
    write_error: str = ""
    """Why the run's folder cannot be written to."""
    disk_gib: float | None = None
    """Free there, checkpoints of this run counted as free: they make room for others."""
    stack: dict[str, str] = field(default_factory=dict)
    """What must be the same on all nodes: name -> version."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run needs."""

    run: str
    """Its folder, for messages."""
    ranks_per_node: int
    gpu_gib: float | None
    """Of each GPU, for torch; None where it is not known, or more than an empty GPU has."""
    disk_gib: float
    """For checkpoints."""

    @classmethod
    def of(cls, foretold: dict[str, Any], run: str, ranks_per_node: int) -> "Needs":
        """From the planner's figures, `summary.predicted`; empty where it has none."""
        peak = disk = None
        if foretold:
            disk = foretold["disk_gib"]["checkpoints"]
            if foretold["fits"]:
                peak = max(foretold["peak_at_load_gib"], foretold["peak_in_step_gib"])
        return cls(run=run, ranks_per_node=ranks_per_node, gpu_gib=peak, disk_gib=disk or 0.0)


def problems(facts: Sequence[Facts | None], needs: Needs) -> list[Problem]:
    """All that is wrong, and where.

    Args:
        facts: By rank; None of a rank that has said nothing.
        needs: Of the run.
    """
    found = {rank: fact for rank, fact in enumerate(facts) if fact}
    silent = "has come, and then said nothing more: it hangs"
    wrong = [(rank, silent) for rank in range(len(facts)) if rank not in found]
    return wrong + [problem for rule in RULES for problem in rule(found, needs)]


Found = dict[int, Facts]


def _all_reduce(found: Found, needs: Needs) -> Iterator[Problem]:
    """Who fails is at fault; where nobody does, who hangs."""
    failed = {rank: fact.all_reduce_error for rank, fact in found.items() if fact.all_reduce_error}
    for rank, error in failed.items():
        yield rank, f"the all-reduce failed: {error}"
    for rank, fact in found.items():
        if fact.hung_seconds and not failed:
            yield (
                rank,
                f"the all-reduce did not end within {fact.hung_seconds:.0f} s: NCCL_DEBUG=INFO "
                "tells more, NCCL_SOCKET_IFNAME names the network interface",
            )


def _sums(found: Found, needs: Needs) -> Iterator[Problem]:
    """Whose part is wrong with most ranks has sent it so; else who has a wrong sum got it so."""
    seen = Counter(part for fact in found.values() for part in fact.wrong_parts)
    senders = {part for part, times in seen.items() if times > len(found) / 2}
    for rank in sorted(senders):
        yield rank, f"what it sends arrives wrong in an all-reduce; {LEAVE_OUT}"
    for rank, fact in found.items():
        if set(fact.wrong_parts) - senders and rank not in senders:
            yield rank, f"gets a wrong sum from an all-reduce; {LEAVE_OUT}"


def _memory(found: Found, needs: Needs) -> Iterator[Problem]:
    for rank, fact in found.items():
        free = fact.free_gib
        if free is not None and needs.gpu_gib and free + SLACK_GIB < needs.gpu_gib:
            yield (
                rank,
                f"GPU {rank % needs.ranks_per_node}: {free:.1f} GiB free of {fact.total_gib:.1f}, "
                f"and the plan needs {needs.gpu_gib:.1f}: nvidia-smi there says who has the rest",
            )


def _folder(found: Found, needs: Needs) -> Iterator[Problem]:
    there = any(fact.sees_run for fact in found.values())
    for rank, fact in found.items():
        if there and fact.sees_run is False:
            yield rank, f"does not see {needs.run}: all nodes must share the file system it is on"
        elif fact.write_error:
            yield rank, f"cannot write to {needs.run}: {fact.write_error}"
        elif fact.disk_gib is not None and fact.disk_gib < needs.disk_gib:
            yield (
                rank,
                f"{fact.disk_gib:.1f} GiB free for {needs.run}, and its checkpoints take "
                f"{needs.disk_gib:.1f}: make room, or lower checkpoint.keep_last",
            )


def _stack(found: Found, needs: Needs) -> Iterator[Problem]:
    """Versions that are not those of most nodes; of two nodes, not those of the first."""
    nodes = {rank: fact.stack for rank, fact in found.items() if fact.stack}
    for name in dict.fromkeys(name for stack in nodes.values() for name in stack):
        versions = {rank: stack.get(name, "missing") for rank, stack in nodes.items()}
        ((usual, _),) = Counter(versions.values()).most_common(1)
        for rank, mine in versions.items():
            if mine != usual:
                yield rank, f"{name} {mine}, and {usual} on other nodes"


RULES = (_all_reduce, _sums, _memory, _folder, _stack)
