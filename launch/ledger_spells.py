"""What was done in the hours that each start held: every second of every GPU in one part.

    steps       optimizer steps that count
    evaluation  held-out losses and samples, within a training
    loading     from its launch to its first step, of a training's first start
    saving      checkpoints and the adapter
    lost        steps, and what goes with them, that a later start did again; and its loading
    stages      jobs of other stages, whole
    idle        held, and none of these: before the launch, after the last word, GPUs without a rank
    unknown     held, and nobody has written what for

Pure functions. A step counts when it is done: one that is under way, or was cut, is idle. Knows
nothing of files and of SLURM.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launch.ledger_facts import RunFacts
from launch.ledger_own import Claim
from pressroom.times import Start

PARTS = ("steps", "evaluation", "loading", "saving", "lost", "stages", "idle", "unknown")
_PART = {"step": "steps", "evaluate": "evaluation", "save": "saving"}
_CLOCKS_DIFFER = 5.0
"""Seconds; below, they are SLURM's rounding."""


@dataclass(frozen=True, kw_only=True)
class Spell:
    """One start of one stage, divided."""

    run: str
    experiment: str = ""
    stage: str
    begun: float
    """Seconds since 1970."""
    unit: str
    """What is counted: GPU, CPU, or rank where a rank's CPUs are not known."""
    parts: Mapping[str, float]
    """By `PARTS`, in seconds of one unit. What is not there cannot be known."""
    joules: float | None = None
    at_least: bool = False
    """Whether it has held more, and nobody knows how much."""
    notes: tuple[str, ...] = ()

    @property
    def held(self) -> float:
        """All parts together: seconds of one unit that were allocated."""
        return math.fsum(self.parts.values())


def spells(facts: RunFacts, claims: Sequence[Claim], experiment: str = "") -> list[Spell]:
    """The claims of a run, each divided into its parts; notes of the run stand at the first."""
    trainings = [claim for claim in claims if claim.stage == "train"]
    steps = facts.step_seconds or 0.0
    found = []
    for claim in claims:
        unit, count = _unit(facts, claim)
        notes = list(claim.notes)
        parts: dict[str, float] = {}
        if not count:
            notes.append(f"{claim.stage}: how many GPUs or CPUs it held was not recorded")
        elif claim.stage != "train":
            parts = {} if claim.seconds is None else {"stages": claim.seconds * count}
        elif claim.start or not _is_before(claim, facts):
            parts = _training(facts, trainings, claim, unit, count, notes)
        else:
            notes.append("a training without times.jsonl: of its hours steps alone are known")
            done = steps if claim.seconds is None else min(steps, claim.seconds)
            steps -= done
            parts = {"steps": done * count}
            if claim.seconds is not None:
                parts["unknown"] = (claim.seconds - done) * count
        found.append(
            Spell(
                run=facts.run,
                experiment=experiment,
                stage=claim.stage,
                begun=claim.begun,
                unit=unit,
                parts=parts,
                joules=claim.joules,
                at_least=claim.at_least or claim.seconds is None or not count,
                notes=tuple(notes),
            )
        )
    if found:
        found[0] = replace(found[0], notes=(*found[0].notes, *facts.notes))
    return found


def _unit(facts: RunFacts, claim: Claim) -> tuple[str, int]:
    """What is counted of a claim, and how many of it; 0: nobody knows."""
    if claim.gpus:
        return "GPU", claim.gpus
    if claim.gpus is None and claim.stage != "train" and not claim.cpus:
        return "GPU", 0
    if claim.cpus:
        return "CPU", claim.cpus
    return "rank", facts.ranks or 0 if claim.gpus == 0 else 0


def _is_before(claim: Claim, facts: RunFacts) -> bool:
    """Whether a start is older than times.jsonl.

    Then metrics.jsonl has steps, and the first start in times.jsonl, if any, went on from one.
    """
    if not facts.times.starts:
        return facts.step_seconds is not None
    first = facts.times.starts[0]
    return claim.begun < first.at and any(m.what == "load" and m.step for m in first.marks)


def _training(
    facts: RunFacts,
    trainings: Sequence[Claim],
    claim: Claim,
    unit: str,
    count: int,
    notes: list[str],
) -> dict[str, float]:
    """Divide one start of a training."""
    again = claim is not trainings[0]
    parts = dict.fromkeys(PARTS[:-1], 0.0)
    del parts["stages"]
    loading = "lost" if again else "loading"
    start = claim.start
    if start is None and claim.seconds is None:
        return {}
    if start is None or not any(mark.what == "load" for mark in start.marks):
        held = (claim.seconds or 0.0) * count  # it never came to its first step, or not yet
        return {**parts, loading: held}
    used = min(start.gpus, count) if unit == "GPU" else count
    done = divided(start, claim.head, loading, gone_back_to(facts.times.starts, start))
    known = math.fsum(done.values())
    over = known - (known if claim.seconds is None else claim.seconds)
    if over > _CLOCKS_DIFFER:
        notes.append("its ranks count more seconds than it was given: theirs are taken")
    for name, seconds in done.items():
        parts[name] = parts.get(name, 0.0) + seconds * used
    held = max(claim.seconds or 0.0, known) * count
    parts["idle"] += max(held - known * used, 0.0)
    return parts


def divided(start: Start, head: float, loading: str, back_to: float) -> dict[str, float]:
    """Part -> seconds, of what the ranks of a start have done.

    Args:
        start: The ranks.
        head: Seconds from its launch to the making of rank 0's process.
        loading: The part that loading is: of a start that is not the first, it is lost.
        back_to: The step to which a later start has gone back.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for mark in start.marks:
        if mark.what == "load":
            found["lost" if mark.step else loading] += head + mark.seconds
        elif mark.what == "end":
            found["idle"] += mark.seconds
        elif mark.step > back_to:
            found["lost"] += mark.seconds
        else:
            found[_PART.get(mark.what, "unknown")] += mark.seconds
    return found


def gone_back_to(starts: Sequence[Start], start: Start) -> float:
    """The lowest step from which a start after this one went on; infinite where none did."""
    at = next(n for n, each in enumerate(starts) if each is start)
    loads = [m.step for each in starts[at + 1 :] for m in each.marks if m.what == "load"]
    return min(loads, default=math.inf)
