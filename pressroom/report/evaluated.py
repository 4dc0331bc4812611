"""What an evaluation found, as sections of a page: losses by group, written texts beside real ones.

Reads evaluation.json alone. Knows nothing of how a page looks.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pressroom.report.curves import BLUE, ORANGE, RULE, Picture, drawn
from pressroom.report.sections import Section, json_of
from pressroom.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_OF_A_NAME = 28
_MOST_OF_A_RUN = 400
_MOST_BARS = 24
_ROW = 0.3
"""Inches of a group in a picture."""


def groups(run: RunDir) -> list[Section]:
    """Losses by what articles are about, and by where they are from."""
    return [_group(name, rows) for name, rows in (json_of(run.evaluation).get("by") or {}).items()]


def _group(name: str, rows: Sequence[Mapping[str, Any]]) -> Section:
    table = []
    for row in rows:
        error = "" if row["error"] is None else f" ± {row['error']:.2f}"
        table.append(
            [
                str(row["name"]),
                f"{row['articles']:,}",
                f"{row['tokens']:,}",
                f"{row['base']:.3f}",
                f"{row['tuned']:.3f}",
                f"{row['change']:+.2f}{error}",
            ]
        )
    head = ("", "articles", "tokens", "base", "tuned", "change")
    note = "Loss of a trained token, nats; the change with one standard error over articles."
    pictures = [_changes(name, rows)] if len(rows) > 1 else []
    return Section(f"Held-out loss by {name}", head, table, note, pictures=pictures)


def _changes(name: str, rows: Sequence[Mapping[str, Any]]) -> Picture:
    """Base and tuned of each group, joined by a line."""
    names = [_short(str(row["name"])) for row in rows]
    base, tuned = ([float(row[model]) for row in rows] for model in ("base", "tuned"))
    errors = [float(row["error"] or 0) for row in rows]

    def draw(axes: "Axes") -> None:
        places, label = np.arange(len(rows)), "tuned ± error of the change"
        axes.hlines(places, tuned, base, color=RULE, lw=2, zorder=1)
        axes.plot(base, places, "o", color=BLUE, label="base", zorder=2)
        axes.errorbar(tuned, places, xerr=errors, fmt="o", color=ORANGE, label=label, zorder=3)
        axes.set_yticks(places, names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=RULE)
        axes.margins(x=0.06)

    title = f"Held-out loss by {name}: less is better"
    height = 1.3 + _ROW * len(rows)
    return drawn(title, draw, "", x="nats a trained token", height=height, legend="above")


def written(run: RunDir) -> list[Section]:
    """Written descriptions beside real ones, and what they have of training articles."""
    found = json_of(run.evaluation).get("written")
    return [_texts(found), _copies(found)] if found else []


def _texts(found: Mapping[str, Any]) -> Section:
    texts, lengths = int(found["texts"]), found["words"]
    rows = []
    if found["ended"] is not None:
        rows.append(["ended by itself", f"{found['ended']:,} of {texts:,}", ""])
    both = ("written", "real")
    for label, percent in (("words, median", 50), ("words, 10 %", 10), ("words, 90 %", 90)):
        numbers = [np.percentile(lengths[kind], percent) if lengths[kind] else 0 for kind in both]
        rows.append([label, *(f"{number:,.0f}" for number in numbers)])
    for n, pair in enumerate(zip(*(found["distinct"][kind] for kind in both), strict=True), 1):
        rows.append([f"distinct {n}-grams, of all", *(f"{share:.0%}" for share in pair)])
    shared = [found["shared"][kind] for kind in both]
    rows.append(["tokens in runs that a training article has", *(f"{s:.1%}" for s in shared)])
    rows.append(["near-copies of one", *(f"{found['near_copies'][kind]:,}" for kind in both)])
    note = f"What the tuned model writes for {texts:,} held-out titles, and what stands there."
    return Section("Written beside real", ("", *both), rows, note, pictures=[_lengths(lengths)])


def _lengths(lengths: Mapping[str, Sequence[int]]) -> Picture:
    """How long written and real descriptions are."""
    longest = max(max(values, default=0) for values in lengths.values())
    step = -(-(longest + 1) // _MOST_BARS)  # the same number of lengths in every bar
    bins = list(range(0, longest + step + 1, step))

    def draw(axes: "Axes") -> None:
        real, texts = lengths["real"], lengths["written"]
        axes.hist(real, bins, histtype="stepfilled", color=BLUE, alpha=0.35, label="real")
        axes.hist(texts, bins, histtype="step", color=ORANGE, lw=1.8, label="written")
        axes.margins(x=0.0)

    return drawn("How long descriptions are", draw, "descriptions", x="words")


def _copies(found: Mapping[str, Any]) -> Section:
    rows = []
    for row in found["likest"]:
        run = str(row["run"])
        cut = run if len(run) <= _MOST_OF_A_RUN else run[:_MOST_OF_A_RUN] + " …"
        what = "near-copy" if row["near_copy"] else "in part"
        shared = f"{row['tokens']:,} of {row['of_tokens']:,}, {row['longest']:,} in a run"
        about = str(row["title"] or row["id"])
        rows.append([about, what, str(row["article"]), shared, cut])
    head = ("written for", "", "training article", "tokens in common", "the longest run")
    note = (
        "`pressroom trace ID` says where an article is."
        if rows
        else "No text has a run of tokens in common with the description of a training article."
    )
    return Section("Closest to a training article", head if rows else (), rows, note)


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _MOST_OF_A_NAME else line[: _MOST_OF_A_NAME - 1] + "…"
