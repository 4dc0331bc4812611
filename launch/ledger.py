"""The ledger: starts of runs, divided -> rows of hours, and their sum.

    of_runs(runs) -> rows

A start belongs to the day on which it began, whole. Pure but for `of_runs`, which asks the files
and SLURM. Knows nothing of how rows look.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from launch.ledger_accounts import ask
from launch.ledger_claims import claims
from launch.ledger_facts import ledger_facts
from launch.ledger_spells import PARTS, Spell, spells
from pressroom.run_dir import RunDir

UNITS = ("GPU", "CPU", "rank")
BY = ("run", "experiment", "name", "month")
_HOUR = 3600.0
_JOULES_OF_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Row:
    """The hours of some starts."""

    key: str
    unit: str
    """Of which the hours are: GPU, CPU or rank."""
    starts: int
    allocated: float
    """Hours: all parts together."""
    at_least: bool
    """Whether some start held more, and nobody knows how much."""
    parts: Mapping[str, float | None]
    """Hours, by `PARTS`; None: of no start is it known."""
    useful: float | None
    """Steps and evaluation, as a share of the training hours whose use is known."""
    kwh: float | None
    """Of those starts for which SLURM has measured it."""
    cost: float | None
    """Of GPU-hours, at a given price."""
    notes: tuple[str, ...]


def of_runs(runs: Sequence[RunDir]) -> list[Spell]:
    """Every start of some runs, divided; SLURM is asked once for all of them.

    Args:
        runs: Wherever the list comes from; one that stands twice counts once.
    """
    once = {run.path.absolute(): run for run in runs}
    facts = {path: ledger_facts(run) for path, run in once.items()}
    slurm = ask({job.job for each in facts.values() for job in each.jobs})
    now = time.time()
    return [
        spell
        for path, each in facts.items()
        for spell in spells(each, claims(each, slurm, now), _experiment(once[path]))
    ]


def _experiment(run: RunDir) -> str:
    """NAME/STAMP of the experiment that a run is a point of."""
    return run.title.rpartition("/")[0] if run.is_point else ""


def rows(spells: Iterable[Spell], by: str = "run", price: float | None = None) -> list[Row]:
    """The rows of the ledger, GPUs first, the most hours first; for each unit apart.

    Args:
        spells: As `of_runs` gives them.
        by: One of `BY`.
        price: Of a GPU-hour.
    """
    groups: defaultdict[tuple[str, str], list[Spell]] = defaultdict(list)
    for spell in spells:
        groups[spell.unit, _key(spell, by)].append(spell)
    made = [_row(key, unit, each, price) for (unit, key), each in groups.items()]
    dated = by == "month"
    return sorted(
        made, key=lambda r: (UNITS.index(r.unit), r.key if dated else -r.allocated, r.key)
    )


def totals(spells: Iterable[Spell], price: float | None = None) -> list[Row]:
    """One row a unit, of all starts."""
    each: defaultdict[str, list[Spell]] = defaultdict(list)
    for spell in spells:
        each[spell.unit].append(spell)
    return [_row("total", unit, each[unit], price) for unit in UNITS if unit in each]


def _key(spell: Spell, by: str) -> str:
    keys = {
        "run": spell.run,
        "experiment": spell.experiment or "(no experiment)",
        "name": spell.run.partition("/")[0],
        "month": f"{datetime.fromtimestamp(spell.begun):%Y-%m}",
    }
    return keys[by]


def _row(key: str, unit: str, spells: Sequence[Spell], price: float | None) -> Row:
    parts = {name: _sum(spell.parts.get(name) for spell in spells) for name in PARTS}
    hours = {n: None if value is None else value / _HOUR for n, value in parts.items()}
    allocated = math.fsum(value or 0.0 for value in hours.values())
    known = allocated - (hours["stages"] or 0.0) - (hours["unknown"] or 0.0)
    good = (hours["steps"] or 0.0) + (hours["evaluation"] or 0.0)
    joules = _sum(spell.joules for spell in spells)
    notes = dict.fromkeys(note for spell in spells for note in spell.notes)
    measured = sum(spell.joules is not None for spell in spells)
    if 0 < measured < len(spells):
        notes[f"energy was measured of {measured} of {len(spells)} starts"] = None
    return Row(
        key=key,
        unit=unit,
        starts=len(spells),
        allocated=allocated,
        at_least=any(spell.at_least for spell in spells),
        parts=hours,
        useful=good / known if known > 0 else None,
        kwh=None if joules is None else joules / _JOULES_OF_KWH,
        cost=allocated * price if price is not None and unit == "GPU" else None,
        notes=tuple(notes),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None
