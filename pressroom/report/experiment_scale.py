"""A scaling experiment's answer: speed, efficiency and cost over GPUs, and the proof of sameness.

Steps of warm-up are left out. Efficiency is the speed of one GPU over what it was with the fewest
GPUs of the same line. Strong scaling trains the same, whatever the number of GPUs: here that is
checked. Knows nothing of files.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pressroom.console import human_seconds
from pressroom.experiment import Definition
from pressroom.report.experiment_answer import Answer, failures, num, spread
from pressroom.report.experiment_runs import Result
from pressroom.report.experiment_scale_panels import panels

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
"""Nats between the losses of a step at two points: rounding, which differs with the order of sums.
Of fp32 measured; of the others our choice."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Repeats of one line at one number of GPUs."""

    line: str
    """What the legend says: strategy and model, where several are compared."""
    gpus: int
    nodes: int
    states: Sequence[str]
    rates: Sequence[float]
    """Tokens a second of all GPUs, of each repeat that has steps to count."""
    mfus: Sequence[float]
    predicted: float
    """Tokens a second of all GPUs."""
    efficiencies: Sequence[float] = ()

    @property
    def rate(self) -> float | None:
        """The mean over the repeats."""
        return sum(self.rates) / len(self.rates) if self.rates else None

    @property
    def state(self) -> str:
        """How its points stand, those that are done not mentioned."""
        others = [s for s in self.states if s != "finished"]
        each = {state: others.count(state) for state in others}
        of = f" of {len(self.states)}" if len(self.states) > 1 else ""
        return ", ".join(f"{state}{f' {n}{of}' if of else ''}" for state, n in each.items())


def answer(definition: Definition, results: Sequence[Result]) -> Answer:
    """The answer, as far as it is there."""
    rows = grouped(definition, results)
    tokens = float(definition.settings["tokens"])
    what = "GPU" if definition.device != "cpu" else "CPU rank"
    head = (
        *("", f"{what}s", "nodes", "tokens/s", f"tokens/s/{what}", "MFU", "efficiency"),
        *("predicted", f"time for {tokens / 1e6:,.6g} M tokens", f"{what}-hours for them", ""),
    )
    cells = [_cells(row, tokens) for row in rows]
    kept = [n for n in range(len(head)) if n in (1, 3) or any(row[n].strip("-") for row in cells)]
    notes, problems = sameness(definition, results)
    return Answer(
        head=[head[n] for n in kept],
        rows=[[row[n] for n in kept] for row in cells],
        figures=[_values(row, tokens) for row in rows],
        panels=panels(rows, tokens, what),
        notes=[_counted(definition), *notes],
        problems=[*problems, *failures(results)],
    )


def grouped(definition: Definition, results: Sequence[Result]) -> list[Row]:
    """The rows of the table: lines in the order in which they were asked for, then GPUs."""
    found: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in results:
        found[label(definition, result), result.point.ranks].append(result)
    warmup = int(definition.settings["warmup_steps"])
    rows = [_row(line, gpus, each, warmup) for (line, gpus), each in found.items()]
    order = list(dict.fromkeys(row.line for row in rows))
    rows.sort(key=lambda row: (order.index(row.line), row.gpus))
    return _with_efficiency(rows)


def label(definition: Definition, result: Result) -> str:
    """What tells a point's line from the others; empty where there is one line."""
    axes = [key for key in ("model", "strategy") if len(definition.axes.get(key, ())) > 1]
    words = [str(result.point.values.get(key, "")).rstrip("/").rpartition("/")[2] for key in axes]
    return " ".join(words)


def _row(line: str, gpus: int, results: Sequence[Result], warmup: int) -> Row:
    rates, mfus = [], []
    for result in results:
        counted = result.after(warmup) if result.is_done else []
        seconds = sum(r["step_seconds"] for r in counted)
        if seconds:
            rates.append(sum(r["tokens"] for r in counted) / seconds)
            known = [r["mfu"] for r in counted if "mfu" in r]
            mfus += [sum(known) / len(known)] if known else []
    point = results[0].point
    return Row(
        line=line,
        gpus=gpus,
        nodes=point.nodes,
        states=[result.state for result in results],
        rates=rates,
        mfus=mfus,
        predicted=float(point.foretold.get("tokens_per_second_per_gpu", 0)) * gpus,
    )


def _with_efficiency(rows: Sequence[Row]) -> list[Row]:
    from dataclasses import replace

    first: dict[str, Row] = {}
    found = []
    for row in rows:
        if row.rate:
            base = first.setdefault(row.line, row)
            assert base.rate
            each = [rate / row.gpus / (base.rate / base.gpus) for rate in row.rates]
            row = replace(row, efficiencies=each)
        found.append(row)
    return found


def _cells(row: Row, tokens: float) -> list[str]:
    seconds = tokens / row.rate if row.rate else None
    return [
        *(row.line, f"{row.gpus:,}", f"{row.nodes:,}"),
        spread(row.rates),
        num(row.rate / row.gpus if row.rate else None),
        f"{100 * sum(row.mfus) / len(row.mfus):.1f} %" if row.mfus else "-",
        spread(row.efficiencies, 100, " %", digits=3),
        num(row.predicted or None),
        human_seconds(seconds) if seconds else "-",
        num(seconds * row.gpus / 3600, 3) if seconds else "-",
        row.state,
    ]


def _values(row: Row, tokens: float) -> dict[str, Any]:
    def ends(values: Sequence[float]) -> dict[str, Any] | None:
        if not values:
            return None
        mean = sum(values) / len(values)
        return {"mean": mean, "min": min(values), "max": max(values), "repeats": len(values)}

    seconds = tokens / row.rate if row.rate else None
    return {
        "line": row.line,
        "ranks": row.gpus,
        "nodes": row.nodes,
        "tokens_per_second": ends(row.rates),
        "tokens_per_second_per_gpu": ends([rate / row.gpus for rate in row.rates]),
        "mfu": ends(row.mfus),
        "efficiency": ends(row.efficiencies),
        "predicted_tokens_per_second": row.predicted or None,
        "seconds_for_tokens": seconds,
        "gpu_hours_for_tokens": seconds * row.gpus / 3600 if seconds else None,
        "states": list(row.states),
    }


def _counted(definition: Definition) -> str:
    settings = definition.settings
    how = "The batch of a GPU stays the same." if settings["weak"] else ""
    how = how or "The global batch stays the same; accumulation follows from the ranks."
    shown = "means over repeats, in brackets the lowest and the highest; " * (
        settings["repeats"] > 1
    )
    return (
        f"{how} Runs of {settings['steps']} steps, of which the first {settings['warmup_steps']} "
        f"are not counted; {shown}time and cost are of steps alone, without loading and saving."
    )


def sameness(definition: Definition, results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Whether every point has trained the same, in words; and each that has not.

    Rows of a step are the same where tokens and trained tokens of every step are.
    """
    if definition.settings["weak"]:
        return [
            "Weak scaling: each number of GPUs trains another batch; no losses are held "
            "against each other."
        ], []
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.is_done:
            groups[str(result.point.values.get("model", ""))].append(result)
    precision = str(definition.recipe["memory"]["precision"])
    tolerance, worst, problems, compared = LOSS_TOLERANCE[precision], 0.0, [], 0
    for first, *others in groups.values():
        for other in others:
            compared += 1
            wrong, apart = _difference(first, other, tolerance)
            worst = max(worst, apart)
            problems += wrong
    if problems or not compared:
        return [], problems
    size = definition.recipe["batch"]["global_batch_size"]
    return [
        f"All {compared + len(groups)} finished points trained on the same rows in the same "
        f"order, {size} a step: tokens of every step are equal, and losses differ by at most "
        f"{worst:.1e} nats ({tolerance:g} allowed in {precision})."
    ], []


def _difference(first: Result, other: Result, tolerance: float) -> tuple[list[str], float]:
    """What two points do not have in common, and how far their losses are apart."""
    names = f"{other.point.name} against {first.point.name}"
    ours, theirs = ({int(r["step"]): r for r in each.rows} for each in (first, other))
    if ours.keys() != theirs.keys():
        return [f"{names}: other steps: {len(theirs)}, not {len(ours)}"], 0.0
    for step, row in ours.items():
        for name in ("tokens", "trained_tokens"):
            if row.get(name) != theirs[step].get(name):
                told = f"{theirs[step].get(name):,.0f} {name.replace('_', ' ')}"
                return [
                    f"{names}: other rows at step {step}: {told}, not {row.get(name):,.0f}"
                ], 0.0
    apart = {step: _apart(row, theirs[step]) for step, row in ours.items()}
    step = max(apart, key=lambda s: apart[s], default=0)
    far = apart.get(step, 0.0)
    if far <= tolerance:
        return [], far
    return [f"{names}: losses differ: by {far:.2g} nats at step {step}, {tolerance:g} allowed"], far


def _apart(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    found = abs(ours["loss"] - theirs["loss"])
    return found if found == found else float("inf")
