"""Adapter + base -> one model folder that any client loads: `pressroom merge RUN`.

The base that was trained is the dequantized one: the 4-bit codes stand for weights, and scaled
B·A is added to those. Merging into the original weights gives another model (KL 0.29 in place of
0.004), merging into 4 bits erases the adapter. The proof is on logits of held-out articles:
merged in fp32 against adapter on the 4-bit base, and then the bf16 folder as it lies on disk.
"""

import shutil
from pathlib import Path
from typing import Any

import click
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from generate import held_out
from generate.tuned import device, load_tuned
from pressroom.base_model import model_folder
from pressroom.console import UserError, entry, log, say
from pressroom.files import publish_folder, publish_json
from pressroom.nn.nf4 import compute_in, dequantize
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

PROOF_ARTICLES = 16
FP32_TOLERANCE = 1e-4
"""Largest mean logit difference of the fp32 merge: above it something else was merged."""
_SHARD_SIZE = "5GB"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@click.command()
@click.argument("run_name", metavar="RUN")
def main(run_name: str) -> None:
    """Adapter + base -> one model folder that any client loads."""
    run = RunDir.find(run_name)
    report = merge(run, run.load_recipe())
    say(f"{run.merged}\n{describe(report)}")


@torch.no_grad()
def merge(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Merge in one memory, prove it, and publish `merged/` in bf16.

    Returns:
        How far the merged logits are from those of adapter on base, in fp32 and in bf16.

    Raises:
        UserError: The fp32 merge is not what was trained.
    """
    batches = [ids for _, ids, _ in held_out.batches(held_out.tokens(run.dataset), 1, device())][
        :PROOF_ARTICLES
    ]
    log.info("merging; the proof is on %d held-out articles", len(batches))
    tuned = load_tuned(run, recipe)
    compute_in(tuned, torch.float32)
    trained_logits = _logits(tuned, batches)
    merged = _merge_weights(tuned, run.adapter)
    report = {"fp32": compare(trained_logits, _logits(merged, batches))}
    if report["fp32"]["mean_logit_difference"] > FP32_TOLERANCE:
        raise UserError(f"the merged model is not what was trained: {describe(report)}")
    with publish_folder(run.merged) as partial:
        merged.to(torch.bfloat16).save_pretrained(partial, max_shard_size=_SHARD_SIZE)
        folder = model_folder(recipe.model)
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        del tuned, merged
        report["bf16"] = compare(trained_logits, _logits(_reload(partial), batches))
        publish_json(partial / "merge.json", report)
    return report


def _merge_weights(tuned: PeftModel, adapter: Path) -> PreTrainedModel:
    """Dequantize the base, then add the adapters to it: in fp32, in place."""
    base = tuned.unload()
    dequantize(base, torch.float32)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def _reload(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": device()}
    )


def _logits(model: PreTrainedModel, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    return [model(input_ids=ids, use_cache=False).logits[0].float().cpu() for ids in batches]


def compare(reference: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """How far logits [S, V] are apart: differences, KL in nats, share of the same top token."""
    a, b = torch.cat(reference), torch.cat(other)
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    return {
        "mean_logit_difference": float((a - b).abs().mean()),
        "max_logit_difference": float((a - b).abs().max()),
        "kl": max(0.0, float((log_a.exp() * (log_a - log_b)).sum(-1).mean())),
        "same_top_token": float((a.argmax(-1) == b.argmax(-1)).float().mean()),
    }


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    return "\n".join(
        f"  {name} against adapter on the 4-bit base: mean logit difference "
        f"{row['mean_logit_difference']:.2g}, KL {row['kl']:.2g}, same top token "
        f"{row['same_top_token']:.1%}"
        for name, row in report.items()
    )


if __name__ == "__main__":
    entry(main)
