"""How a run stands: finished, failed, going on or broken off, and its chief figures.

Knows nothing of how a page looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pressroom.console import human_seconds
from pressroom.report.metrics import Series, finite
from pressroom.report.sections import number, perplexities
from pressroom.run_dir import RunDir
from pressroom.standing import built, last_lines, standing

_MOST_OF_AN_ERROR = 4000
_LAST_LINES = 15


@dataclass(frozen=True)
class Headline:
    """What stands above everything else."""

    state: str
    """finished, failed, running, stopped or begun."""
    words: str
    """The same in a sentence."""
    error: str = ""
    """What it said last, where it has not finished."""


def headline(run: RunDir, series: Mapping[str, Series], num_steps: int | None) -> Headline:
    """How a run stands, as far as its files tell.

    Args:
        run: Which.
        series: Of metrics.jsonl.
        num_steps: That it is to have, where that is known.
    """
    steps = series["loss"][0] if "loss" in series else np.array([])
    of = f" of {num_steps:,}" if num_steps else ""
    at = f"step {int(steps[-1]):,}{of}" if len(steps) else "no step yet"
    when = f", as of {_time(run.metrics)}" if len(steps) else ""
    state = standing(run)
    if state == "failed":
        text = run.error.read_text(encoding="utf-8", errors="replace").strip()
        trained = run.adapter.is_dir()
        told = "failed, after training had finished" if trained else f"failed at {at}"
        return Headline(state, f"{told}, {_time(run.error)}", text[-_MOST_OF_AN_ERROR:])
    if state == "finished":
        after = f": {at}" if len(steps) else ""
        return Headline(state, f"finished {_time(run.adapter)}{after}")
    if state == "running":
        return Headline(state, f"running: {at}{when}")
    if state == "given up":
        return Headline("stopped", f"given up at {at}{when}: others of its experiment were better")
    if state == "preempted":
        words = f"ended at {at}{when}, as it was asked to: the same command goes on from there"
        return Headline("stopped", words)
    if state == "stopped":
        words = f"stopped at {at}{when}: killed, or its machine lost; no error is on record"
        return Headline(state, words, _last_words(run))
    return Headline(state, "training has not begun", _last_words(run))


def figures(
    run: RunDir, series: Mapping[str, Series], facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The chief figures: (what, how much), those that are known."""
    found = []
    scored = built(run.evaluation, lambda: perplexities(run), []) or {}
    if {"base", "tuned"} <= scored.keys():
        before, after = (number(scored[name]["trained"]) for name in ("base", "tuned"))
        found.append(("held-out perplexity", f"{before} → {after}"))
    if created := _stamp(run):
        found.append(("created", created))
    if "device" in facts:
        found.append(("on", f"{facts.get('world_size', 1)} x {facts['device']}"))
    values = {name: finite(points)[1] for name, points in series.items()}
    known = {name: numbers for name, numbers in values.items() if len(numbers)}
    if "step_seconds" in known:
        found.append(("time in steps", human_seconds(float(known["step_seconds"].sum()))))
    if "tokens" in known:
        found.append(("tokens", f"{known['tokens'].sum():,.0f}"))
    if "tokens_per_second_per_gpu" in known:
        speeds = known["tokens_per_second_per_gpu"]
        median = float(np.median(speeds[1:] if len(speeds) > 1 else speeds))  # the first warms up
        found.append(("tokens/s/GPU, median", number(median)))
    if "eval_loss" in known:
        found.append(("held-out loss", f"{known['eval_loss'][-1]:.4f}"))
    return found


def _stamp(run: RunDir) -> str:
    """When a run was begun, by its folder's name; empty when that is no time."""
    try:
        return f"{datetime.strptime(run.path.name[:19], '%Y-%m-%dT%H-%M-%S'):%Y-%m-%d %H:%M}"
    except ValueError:
        return ""


def _time(path: Path) -> str:
    return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"


def _last_words(run: RunDir) -> str:
    """The end of the log that was written last."""
    logs = [path for path in run.logs.glob("*") if path.is_file()]
    if not logs:
        return ""
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    lines = last_lines(newest, _MOST_OF_AN_ERROR)
    return "\n".join([f"{newest.name}:", *lines[-_LAST_LINES:]])
