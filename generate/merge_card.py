"""A merged model's card: README.md as a model hub reads it, with all that it was made from.

`card` is a pure function; `facts` looks up what it tells. Knows nothing of weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from generate.merge_source import Source
from pressroom.base_model import is_hub_id, local_folder, model_fingerprint
from pressroom.console import UserError, log, redact
from pressroom.dataset import Manifest
from pressroom.files import read_json
from pressroom.run_dir import RunDir

_DAMAGED = "delete it"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card tells."""

    name: str
    base: str
    base_fingerprint: str
    license: str | None
    """As the base's own card says it."""
    quantization: str
    adapter: str
    command: str
    recipe: str | None
    """As YAML; None of an adapter without a run, and so the next two."""
    dataset: dict[str, Any] | None
    perplexity: dict[str, dict[str, float]] | None
    report: dict[str, Any]
    versions: dict[str, str]
    note: str | None = None
    """What a reader should know of how the base was read."""


def facts(source: Source, command: str, versions: dict[str, str]) -> Facts:
    """Look up what a card tells of a merge, but for its proof."""
    run, config = source.run, source.adapter.config
    how = source.quantization
    quantized = f"{how.quant_type}, double quantization {how.double_quant}" if how else "none"
    targets = ", ".join(sorted({name.split(".")[-2] for name in source.adapter.targets}))
    is_local = local_folder(source.base_name).is_dir()
    of_run = run is not None and source.adapter.folder.absolute() == run.adapter.absolute()
    is_scored = run is not None and of_run and run.evaluation.is_file()
    scored = read_json(run.evaluation, _DAMAGED) if run and is_scored else {}
    return Facts(
        name=run.title.partition("/")[0] if run else source.adapter.folder.absolute().name,
        base=source.base.absolute().name if is_local else source.base_name,
        base_fingerprint=model_fingerprint(source.base),
        license=_license(source.base),
        quantization=f"{quantized}; computed in {source.precision}",
        adapter=f"LoRA, r {config['r']}, alpha {config['lora_alpha']}, on {targets}",
        command=command,
        recipe=redact(run.recipe.read_text(encoding="utf-8")) if run else None,
        dataset=_dataset(run) if run else None,
        perplexity=scored.get("perplexity"),
        report={},
        versions=versions,
        note=source.note,
    )


def _dataset(run: RunDir) -> dict[str, Any] | None:
    try:
        folder = run.dataset
        manifest = Manifest.read(folder)
    except UserError as error:
        log.warning("%s\nthe model card will say nothing of the articles", error)
        return None
    return {"name": folder.name, "articles": manifest.articles, "counts": manifest.counts}


def _license(base: Path) -> str | None:
    """The licence that a base's own card names."""
    path = base / "README.md"
    if not path.is_file():
        return None
    try:
        found = ModelCard(path.read_text(encoding="utf-8")).data.get("license")
    except ValueError:  # a card is no part of a model: it may be anything
        return None
    return found if isinstance(found, str) else None


def card(facts: Facts) -> str:
    """The text of README.md."""
    data = ModelCardData(
        base_model=facts.base,
        library_name="transformers",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=["pressroom", "lora", "news"],
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {facts.name}", _made(facts), _proof(facts.report)]
    if facts.perplexity:
        parts.append(_perplexity(facts.perplexity))
    if facts.dataset:
        parts.append(_articles(facts.dataset))
    if facts.recipe:
        parts.append(f"## Recipe\n\n```yaml\n{facts.recipe.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _made(facts: Facts) -> str:
    """What it was made from, and how."""
    known = f"`{facts.base}`" if is_hub_id(facts.base) else f"{facts.base}, a local folder"
    rows = {
        "base": f"{known}, fingerprint {facts.base_fingerprint}",
        "base in training": facts.quantization,
        "adapter": facts.adapter,
        "command": f"`{facts.command}`",
        "versions": ", ".join(f"{name} {number}" for name, number in facts.versions.items()),
    }
    table = _table(["made from", ""], [[name, value] for name, value in rows.items()])
    note = f"\n\n{facts.note}" if facts.note else ""
    return f"An adapter, trained by Pressroom, added to its base's weights.\n\n{table}{note}"


def _proof(report: dict[str, Any]) -> str:
    """How far it is from what was trained."""
    if not report:
        return "## Is it what was trained\n\nNot verified (`--no-verify`)."
    keys = ("mean_logit_difference", "max_logit_difference", "kl", "same_top_token")
    rows = [
        [name, *(f"{row[key]:.2g}" for key in keys[:3]), f"{row[keys[3]]:.2%}"]
        for name, row in report.items()
    ]
    one = next(iter(report.values()))
    layers, count = one["layers"], one["num_layers"]
    which = "all" if len(layers) == count else f"of {count} layers " + ", ".join(map(str, layers))
    table = _table(["merged in", "mean logit difference", "largest", "KL, nats", "same"], rows)
    return (
        "## Is it what was trained\n\nLogits against adapter on the base as it was trained, all "
        f"computed in fp32, at {one['tokens']:,} tokens of {one['texts']}; layers: {which}. "
        f"`same`: the same most likely token.\n\n{table}"
    )


def _perplexity(scores: dict[str, dict[str, float]]) -> str:
    rows = [
        [name, *(f"{value:.2f}" for value in (row["trained"], row["description"]))]
        for name, row in scores.items()
    ]
    return "## Held-out perplexity\n\n" + _table(["", "trained tokens", "description"], rows)


def _articles(dataset: dict[str, Any]) -> str:
    rows = [[f"`{name}`", f"`{sha256}`"] for name, sha256 in dataset["articles"].items()]
    counts = yaml.safe_dump(dataset["counts"], sort_keys=False).strip()
    table = _table(["articles", "sha256"], rows)
    return f"## Dataset\n\n`{dataset['name']}`\n\n{table}\n\n```yaml\n{counts}\n```"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
