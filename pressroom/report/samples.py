"""samples.jsonl: a prompt, what base and tuned model make of it, and what the article really says.

Knows nothing of how texts are written.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_SAMPLES = 12
_MOST_OF_A_TEXT = 2000


@dataclass(frozen=True)
class Sample:
    """A prompt and what became of it."""

    prompt: str
    step: str
    """At which step of training; empty for the finished model."""
    texts: Sequence[tuple[str, str]]
    """(Whose, text) of each."""


def read(path: Path) -> tuple[list[Sample], str]:
    """Samples worth showing, and a note on those that are not shown.

    The finished model's come first, then those of the latest steps.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        every = [_row(line) for line in lines if line.strip()]
    rows = [row for row in every if row is not None]
    rows.sort(key=lambda row: row.get("step") or math.inf, reverse=True)
    shown = [_sample(row) for row in rows[:_MOST_SAMPLES]]
    notes = []
    if len(shown) < len(rows):
        notes.append(f"{len(shown)} of {len(rows):,} are shown; samples.jsonl has all.")
    if len(rows) < len(every):
        notes.append(f"Damaged lines, left out: {len(every) - len(rows):,}.")
    return shown, " ".join(notes)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "prompt" in row else None


def _sample(row: dict[str, Any]) -> Sample:
    prompt, step = str(row["prompt"]), row.get("step")
    texts = []
    for who in ("base", "tuned"):
        if written := row.get(who):
            cut = "" if written["ended"] else " [cut]"
            texts.append((who, _short(written["text"].removeprefix(prompt).strip()) + cut))
    if reference := row.get("reference"):
        texts.append(("real article", _short(str(reference))))
    return Sample(_short(prompt), f"step {step:,}" if step else "", texts)


def _short(text: str) -> str:
    more = len(text) - _MOST_OF_A_TEXT
    return text if more <= 0 else f"{text[:_MOST_OF_A_TEXT]} [{more:,} characters more]"
