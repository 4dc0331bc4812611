"""What a run's files say, as tables and texts for a page: what is missing is left out.

Each builder reads one file and may trip over what is wrong in it: call it through
`standing.built`, which tells so in place of the section. Knows nothing of how a page looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pressroom.console import human_seconds
from pressroom.dataset import Manifest
from pressroom.files import read_json, sizes
from pressroom.report import curves, samples
from pressroom.report.curves import Picture
from pressroom.report.samples import Sample
from pressroom.run_dir import RunDir

_LEFT_OUT = "left out of this page"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """A table's, the first cell of each being its name."""
    note: str = ""
    pictures: Sequence[Picture] = ()
    samples: Sequence[Sample] = ()
    text: str = ""
    """Shown as it stands."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands below the heading."""
        return not (self.rows or self.pictures or self.samples or self.text or self.note)


def json_of(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: The file is damaged.
        TypeError: It holds something else.
    """
    values = read_json(path, _LEFT_OUT)
    if not isinstance(values, dict):
        raise TypeError("no JSON object")
    return values


def number(value: Any) -> str:
    """A figure with four digits, more where it is large."""
    if value is None:
        return "-"
    value = float(value)
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def perplexities(run: RunDir) -> dict[str, dict[str, float]]:
    """Model -> perplexity of its trained tokens, and of the descriptions alone."""
    rows = json_of(run.evaluation)["perplexity"]
    kinds = ("trained", "description")
    return {str(n): {kind: float(row[kind]) for kind in kinds} for n, row in rows.items()}


def evaluation(run: RunDir) -> Section:
    """Held-out perplexity, base beside tuned."""
    result, found = json_of(run.evaluation), perplexities(run)
    base = found["base"]
    rows = []
    for name, row in found.items():
        than = ["" if name == "base" else f" ({row[k] / base[k] - 1:+.0%})" for k in row]
        rows.append([name, *(number(p) + t for p, t in zip(row.values(), than, strict=True))])
    of = f"{result['articles']:,} articles, {result['trained_tokens']:,} trained tokens."
    if result.get("adapter_off_is_base_bitwise"):
        of += " With its adapter off the tuned model is the base, bit by bit."
    known = [name for name in ("base", "tuned", "unquantized base") if name in found]
    drawn = curves.perplexity({name: found[name]["trained"] for name in known})
    head = ("", "trained tokens", "description")
    return Section("Held-out perplexity", head, rows, of, pictures=[drawn])


def written(run: RunDir) -> Section:
    """What the tuned model writes beside the base and the real article."""
    shown, note = samples.read(run.samples)
    return Section("What it writes", note=note, samples=shown)


def predicted(run: RunDir) -> dict[str, float]:
    """The planner's figures of a run, by name."""
    foretold = json_of(run.summary).get("predicted") or {}
    return {n: float(v) for n, v in foretold.items() if type(v) in (int, float)}


def summary(run: RunDir) -> Section:
    """What the planner predicted beside what was measured."""
    planned, rows = predicted(run), []
    for name, value in json_of(run.summary)["measured"].items():
        if type(value) in (int, float):
            foretold = planned.get(name)
            off = f"{value / foretold - 1:+.0%}" if foretold else ""
            rows.append([_words(name), number(foretold), number(value), off])
    head = ("", "predicted", "measured", "off by")
    return Section("Predicted beside measured", head, rows)


_UNITS = {"seconds": "s", "gib": "GiB"}


def _words(name: str) -> str:
    """`peak_at_load_gib` -> `peak at load, GiB`."""
    words, _, unit = name.rpartition("_")
    readable = f"{words}, {_UNITS[unit]}" if words and unit in _UNITS else name
    return readable.replace("_", " ")


def merge(run: RunDir) -> Section:
    """How far the merged logits are from those that were trained."""
    names = ("mean_logit_difference", "max_logit_difference", "kl", "same_top_token")
    report = json_of(run.merge_report).items()
    rows = [
        [str(precision), *(f"{float(row[name]):.2g}" for name in names[:3]), f"{row[names[3]]:.1%}"]
        for precision, row in report
    ]
    head = ("merged in", "mean logit difference", "largest", "KL, nats", "same top token")
    note = "Logits of held-out articles, against adapter on the quantized base."
    return Section("The merge's proof", head, rows, note)


def outputs(run: RunDir) -> Section:
    """Checkpoints, adapter and merged model that are there."""
    folders = [*sorted(run.checkpoints.glob("step-*")), run.adapter, run.merged]
    rows = []
    for folder in folders:
        if folder.is_dir():
            size = sum(sizes(folder).values()) / 2**20
            when = datetime.fromtimestamp(folder.stat().st_mtime)
            name = str(folder.relative_to(run.path))
            rows.append([name, f"{size:,.1f} MiB", f"{when:%Y-%m-%d %H:%M}"])
    return Section("Checkpoints and models", ("", "size", "written"), rows)


def stages(run: RunDir) -> Section:
    """The chain's stages."""
    rows = []
    for name, stage in run.stages.items():
        finished = stage.get("finished")
        when = f"{datetime.fromisoformat(finished):%Y-%m-%d %H:%M}" if finished else "not finished"
        took = human_seconds(float(stage["seconds"])) if "seconds" in stage else ""
        rows.append([str(name), when, took])
    return Section("Stages", ("", "finished", "took"), rows)


def dataset(manifest: Manifest) -> Section:
    """Where the articles came from and what became of them."""
    counts = manifest.counts
    rows = [["dataset", manifest.key]]
    rows += [[_words(str(n)), f"{c:,}"] for n, c in counts.items() if n != "rejected"]
    rows += [[f"rejected: {cause}", f"{c:,}"] for cause, c in counts["rejected"].items()]
    for split, share in manifest.packing.items():
        shards = [shard for shard in manifest.shards if shard.split == split]
        tokens = sum(shard.tokens for shard in shards)
        rows.append([f"{split}: rows", f"{manifest.rows(split):,}"])
        rows.append([f"{split}: tokens, share of the rows' room", f"{tokens:,}, {share:.1%}"])
    rows += [[f"sha256 of {name}", digest] for name, digest in manifest.articles.items()]
    return Section("Articles", rows=rows)


def environment(run: RunDir) -> Section:
    """Versions, device, base model and whatever else the run wrote down about itself."""
    facts = json_of(run.environment)
    return Section("Environment", rows=[[_words(str(n)), str(v)] for n, v in facts.items()])


def recipe(run: RunDir) -> Section:
    """The recipe as it ran."""
    text = run.recipe.read_text(encoding="utf-8", errors="replace")
    return Section("Recipe", text=text)
