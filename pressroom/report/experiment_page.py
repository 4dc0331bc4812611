"""An experiment's folder -> results.json, results.csv, results.png, report.html, best.yaml.

Made again each time, from the runs and from what was asked. Knows nothing of the kinds of
experiments but which function answers each.
"""

import csv
import io
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pressroom.console import harmless, redact
from pressroom.experiment import Definition, Experiment
from pressroom.files import publish_bytes, publish_json, publish_text
from pressroom.report import experiment_scale, experiment_size, experiment_sweep
from pressroom.report.experiment_answer import Answer
from pressroom.report.experiment_panels import pictures, side_by_side
from pressroom.report.experiment_runs import Result, results
from pressroom.report.headline import Headline
from pressroom.report.page import _environment
from pressroom.report.pictures import to_bytes
from pressroom.report.sections import Section

_ANSWERS = {
    "scale": experiment_scale.answer,
    "sweep": experiment_sweep.answer,
    "size": experiment_size.answer,
}


def publish(experiment: Experiment) -> list[str]:
    """Write everything that can be said of an experiment now.

    Returns:
        What is wrong with it, a line each.

    Raises:
        UserError: Its definition is damaged.
    """
    definition = experiment.definition()
    found = results(experiment, definition)
    answer = _ANSWERS[definition.kind](definition, found)
    publish_json(experiment.results, _finite(_values(definition, found, answer)))
    publish_text(experiment.table, _csv(definition, found))
    if answer.panels:
        drawn = side_by_side(_title(definition, found), answer.panels)
        publish_bytes(experiment.picture, to_bytes(drawn, "png"))
    publish_text(experiment.report, _page(experiment, definition, found, answer))
    if answer.best:
        publish_text(experiment.best, experiment.run(answer.best).recipe.read_text("utf-8"))
    return list(answer.problems)


def text(experiment: Experiment) -> str:
    """The table for a terminal, and the notes below it."""
    definition = experiment.definition()
    answer = _ANSWERS[definition.kind](definition, results(experiment, definition))
    lines = ["", *_columns([answer.head, *answer.rows]), *("", *answer.notes), ""]
    return harmless("\n".join(lines)).replace("\\n", "\n")


def files(experiment: Experiment) -> list[Path]:
    """What there is to look at."""
    every = (
        *(experiment.report, experiment.picture),
        *(experiment.table, experiment.results, experiment.best),
    )
    return [path for path in every if path.is_file()]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells below each other; figures end where their heads end."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lefts = [not any(row[n][:1].isdigit() for row in rows[1:]) for n in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, lefts, strict=True)
        ).rstrip()
        for row in rows
    ]


def _values(definition: Definition, found: Sequence[Result], answer: Answer) -> dict[str, Any]:
    return {
        "kind": definition.kind,
        "name": definition.name,
        "device": definition.device,
        "settings": definition.settings,
        "created": definition.created,
        "commit": definition.commit,
        "rows": list(answer.figures),
        "notes": list(answer.notes),
        "problems": list(answer.problems),
        "best": answer.best.name if answer.best else None,
        "points": [_point(result) for result in found],
    }


def _point(result: Result) -> dict[str, Any]:
    point = result.point
    steps = [row for row in result.rows if "step_seconds" in row]
    return {
        "point": point.name,
        **point.values,
        "nodes": point.nodes,
        "ranks": point.ranks,
        "state": result.state,
        "steps": len(steps),
        "tokens": int(result.tokens),
        "loss": steps[-1]["loss"] if steps else None,
        "held_out_loss": result.loss,
        "seconds_in_steps": sum(row["step_seconds"] for row in steps),
        "seconds_in_all": result.seconds,
        "gpu_hours_in_steps": result.gpu_hours,
        "parameters": point.foretold.get("parameters"),
        "note": result.note,
    }


def _finite(value: Any) -> Any:
    """The same, but null for what is no number: JSON has none of these."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(definition: Definition, found: Sequence[Result]) -> str:
    rows = [_point(result) for result in found]
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return redact(file.getvalue())


def _title(definition: Definition, found: Sequence[Result]) -> str:
    done = sum(result.is_done for result in found)
    missing = f", {done} of {len(found)} points" if done < len(found) else ""
    what = {"scale": "strong scaling", "sweep": "sweep", "size": "model and data size"}
    kind = "weak scaling" if definition.settings.get("weak") else what[definition.kind]
    where = "CPU ranks" if definition.device == "cpu" else definition.device
    return f"{definition.recipe['name']}: {kind} on {where}, {definition.created[:10]}{missing}"


def _page(
    experiment: Experiment, definition: Definition, found: Sequence[Result], answer: Answer
) -> str:
    states = [result.state for result in found]
    counts = ", ".join(f"{state} {states.count(state)}" for state in dict.fromkeys(states))
    is_over = all(result.is_done or result.state == "does not fit" for result in found)
    state = "failed" if answer.problems else "finished" if is_over else "stopped"
    sections = [
        Section("What came out", answer.head, answer.rows, " ".join(answer.notes)),
        Section("Pictures", pictures=pictures(answer.panels)),
        Section("Points", *_points(found)),
        Section("What was asked", rows=_asked(definition)),
        Section("Recipe", text=yaml.safe_dump(definition.recipe, sort_keys=False)),
    ]
    return (
        _environment()
        .get_template("page.html")
        .render(
            name=definition.name,
            run=experiment.title,
            headline=Headline(state, f"{len(found)} points: {counts}", "\n".join(answer.problems)),
            figures=[],
            sections=[section for section in sections if not section.is_empty],
            notes=[],
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
    )


def _points(found: Sequence[Result]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for result in found:
        loss = f"{result.loss:.4f}" if result.loss is not None else ""
        hours = f"{result.gpu_hours:.3g}" if result.rows else ""
        shape = f"{result.point.nodes} x {result.point.ranks_per_node}"
        rows.append([result.point.name, result.state, shape, loss, hours, result.note])
    head = ("", "state", "nodes x ranks", "held-out loss", "rank-hours in steps", "")
    return head, rows


def _asked(definition: Definition) -> list[list[str]]:
    rows = [["command", definition.command], ["asked", definition.created]]
    rows += [[key, ", ".join(map(str, values))] for key, values in definition.axes.items()]
    rows += [[key.replace("_", " "), str(value)] for key, value in definition.settings.items()]
    rows += [["device", definition.device], ["commit", definition.commit or "no clone"]]
    rows += [[name, found] for name, found in definition.versions.items()]
    if definition.cluster:
        rows.append(["partition", str(definition.cluster["partition"])])
    return rows
