"""Rows of the ledger as a table, as JSON and as CSV. Pure functions.

Knows nothing of where the rows come from.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch.ledger import Row
from launch.ledger_spells import PARTS
from pressroom.console import harmless, redact

_NAMED = 3
"""Rows that a note names; the others are counted."""


def table(rows: Sequence[Row], totals: Sequence[Row], by: str) -> str:
    """A table for each unit, its total last; below them what is not known, and why.

    A part that is known of no row is left out; of one row, it is empty there.
    """
    parts = []
    for total in totals:
        mine = [row for row in rows if row.unit == total.unit]
        parts.append("\n".join(_lines(mine, total, by)))
    notes = _notes(rows)
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _lines(rows: Sequence[Row], total: Row, by: str) -> list[str]:
    digits = 4 if total.allocated < 1 else 2 if total.allocated < 1000 else 1
    sums = [total] if len(rows) > 1 else []
    cells = [_cells(row, digits) for row in [*rows, *sums]]
    heads = ["allocated", *PARTS, "useful", "kWh", "cost"]
    kept = [n for n, _ in enumerate(heads, start=1) if any(row[n] for row in cells)]
    shown = [
        [by, *(heads[n - 1] for n in kept)],
        *([row[0], *(row[n] for n in kept)] for row in cells),
    ]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in shown
    ]
    if sums:
        lines.insert(-1, "-" * max(map(len, lines)))
    return [f"{total.unit}-hours", *lines]


def _cells(row: Row, digits: int) -> list[str]:
    def hours(value: float | None) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    return [
        harmless(redact(row.key)),
        ("≥" if row.at_least else "") + hours(row.allocated),
        *(hours(row.parts[name]) for name in PARTS),
        "" if row.useful is None else f"{row.useful:.0%}",
        "" if row.kwh is None else f"{row.kwh:,.2f}",
        "" if row.cost is None else f"{row.cost:,.2f}",
    ]


def _notes(rows: Iterable[Row]) -> list[str]:
    """Each note once, with the rows that it is of."""
    of: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            of.setdefault(note, []).append(row.key)
    lines = []
    for note, keys in of.items():
        named = list(dict.fromkeys(keys))
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        lines.append(harmless(redact(f"note: {', '.join(named[:_NAMED])}{more}: {note}")))
    return lines


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON values; hours are not rounded to what a table shows."""
    hours = {f"{name}_hours": _rounded(row.parts[name]) for name in PARTS}
    return {
        "key": redact(row.key),
        "unit": row.unit,
        "starts": row.starts,
        "allocated_hours": _rounded(row.allocated),
        "at_least": row.at_least,
        **hours,
        "useful": _rounded(row.useful),
        "kwh": _rounded(row.kwh),
        "cost": _rounded(row.cost),
        "notes": [redact(note) for note in row.notes],
    }


def as_csv(rows: Sequence[Row]) -> str:
    """Rows for a spreadsheet, without totals; what is not known is empty."""
    text = io.StringIO()
    lines: list[Mapping[str, Any]] = [plain(row) for row in rows]
    names = list(lines[0]) if lines else ["key"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({**line, "notes": "; ".join(line["notes"])})
    return text.getvalue()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 8)
