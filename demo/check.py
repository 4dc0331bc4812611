"""What the demo must show: a short table, and a non-zero exit when a figure is missed.

Reads the run that the chain made. Run as `python demo/check.py`, after `pressroom run demo`.
"""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch

from launch.keys import run_of, stage_keys
from pressroom.console import UserError, entry, say
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    shown: str
    bound: str
    ok: bool


def figures(run: RunDir) -> list[Figure]:
    """Each figure of a finished demo run beside its bound."""
    evaluation = json.loads(run.evaluation.read_text(encoding="utf-8"))
    merge = json.loads(run.merge_report.read_text(encoding="utf-8"))
    base, tuned = evaluation["perplexity"]["base"], evaluation["perplexity"]["tuned"]
    trained, description = (1 - tuned[k] / base[k] for k in ("trained", "description"))
    written = evaluation["written"]
    ended, titles = written["ended"], written["texts"]
    off_is_base = evaluation["adapter_off_is_base_bitwise"]
    fp32, bf16 = merge["fp32"]["mean_logit_difference"], merge["bf16"]["mean_logit_difference"]
    return [
        Figure(
            "perplexity, trained tokens",
            f"{base['trained']:.1f} -> {tuned['trained']:.1f} (-{trained:.0%})",
            "at least -60%",
            trained >= 0.6,
        ),
        Figure(
            "perplexity, description",
            f"{base['description']:.1f} -> {tuned['description']:.1f} (-{description:.0%})",
            "at least -20%",
            description >= 0.2,
        ),
        Figure(
            "adapter off = NF4 base", "bitwise" if off_is_base else "no", "bitwise", off_is_base
        ),
        Figure("fp32 merge, mean logit difference", f"{fp32:.1e}", "1e-4", fp32 <= 1e-4),
        Figure("bf16 merge on disk, the same", f"{bf16:.2g}", "printed", True),
        Figure(
            "held-out titles that end by eos",
            f"{ended} of {titles}",
            "80%",
            ended >= 0.8 * titles,
        ),
        loads(run),
    ]


def loads(run: RunDir) -> Figure:
    """Whether plain transformers loads the merged folder and runs it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(run.merged)
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2]])).logits
    shown = f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"
    ok = bool(torch.isfinite(logits).all())
    return Figure("AutoModelForCausalLM loads it", shown, "finite logits", ok)


def table(rows: list[Figure]) -> str:
    """The figures for a person."""
    return "\n".join(
        f"  {'ok  ' if row.ok else 'MISS'}  {row.what:36}{row.shown:28}{row.bound}" for row in rows
    )


def made(run: RunDir) -> dict[str, Any]:
    """Where everything lies."""
    return {
        "run": run.path,
        "dataset": run.dataset,
        "adapter": run.adapter,
        "merged model": run.merged,
        "generated": run.samples,
    }


def demo_run() -> RunDir:
    """The run that the chain made of the demo's recipe.

    Raises:
        UserError: There is none, or it is not finished.
    """
    recipe = Recipe.load("demo")
    run = run_of(recipe, stage_keys(recipe))
    if run is None or "finished" not in run.stages.get("generate", {}):
        raise UserError("no finished run of the demo: `pressroom run demo` makes one")
    return run


def main() -> None:
    """Print the table and the paths."""
    run = demo_run()
    rows = figures(run)
    say(table(rows) + "\n")
    for name, path in made(run).items():
        say(f"  {name:14}{path}")
    if not all(row.ok for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    entry(main)
