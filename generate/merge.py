"""Adapter + base -> one model folder that any client loads: `pressroom merge RUN`.

The base that was trained is the dequantized one: the 4-bit codes stand for weights, and scaled
B·A is added to those. Merging into the original weights gives another model (KL 0.29 in place of
0.004), merging into 4 bits erases the adapter. The proof is on logits of held-out articles:
merged in fp32 against adapter on the 4-bit base, and then the 16-bit folder as it lies on disk.
All of it happens in the host's memory, which holds the model in fp32.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from generate import held_out
from generate.held_out import HeldOut
from generate.tuned import add_adapter, load_tuned
from pressroom.base_model import model_folder
from pressroom.console import UserError, log
from pressroom.files import publish_folder, publish_json
from pressroom.nn.nf4 import compute_in, dequantize
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.train_sections import DTYPES, Precision

PROOF_ARTICLES = 16
FP32_TOLERANCE = 1e-4
"""Largest mean logit difference of the fp32 merge: above it something else was merged."""
_HOST = torch.device("cpu")
_SHARD_SIZE = "5GB"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@torch.no_grad()
def merge(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Merge in one memory, prove it, and publish `merged/` in the recipe's 16-bit dtype.

    Returns:
        How far the merged logits are from those of adapter on base, in fp32 and as on disk.

    Raises:
        UserError: The fp32 merge is not what was trained.
    """
    precision: Precision = "bf16" if recipe.memory.precision == "fp32" else recipe.memory.precision
    dtype = getattr(torch, DTYPES[precision])
    articles = held_out.tokens(run.dataset)[:PROOF_ARTICLES]
    log.info("merging; the proof is on %d held-out articles", len(articles))
    tuned = load_tuned(run, recipe, _HOST)
    compute_in(tuned, torch.float32)
    trained_logits = [_logits(tuned, article) for article in articles]
    merged = _merge_weights(tuned, run.adapter)
    report = {"fp32": compare(trained_logits, [_logits(merged, a) for a in articles])}
    if report["fp32"]["mean_logit_difference"] > FP32_TOLERANCE:
        raise UserError(f"the merged model is not what was trained: {describe(report)}")
    with publish_folder(run.merged) as partial:
        merged.to(dtype).save_pretrained(partial, max_shard_size=_SHARD_SIZE)
        folder = model_folder(recipe.model)
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        del tuned, merged
        on_disk = AutoModelForCausalLM.from_pretrained(partial, dtype="auto")
        report[precision] = compare(trained_logits, [_logits(on_disk, a) for a in articles])
        publish_json(partial / "merge.json", report)
    return report


def _merge_weights(tuned: PeftModel, adapter: Path) -> PreTrainedModel:
    """Dequantize the base, then add the adapters to it: in fp32, in place."""
    base = tuned.unload()
    dequantize(base, torch.float32)
    return add_adapter(base, adapter).merge_and_unload()


def _logits(model: PreTrainedModel, article: HeldOut) -> torch.Tensor:
    """Logits [S, V] of one article, fp32."""
    return model(input_ids=torch.tensor([article.ids]), use_cache=False).logits[0].float()


def compare(reference: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """How far logits [S, V] are apart: differences, KL in nats, share of the same top token."""
    sums, largest = torch.zeros(4, dtype=torch.float64), 0.0
    for a, b in zip(reference, other, strict=True):
        difference = (a - b).abs()
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        kl = torch.nn.functional.kl_div(log_b, log_a, reduction="sum", log_target=True)
        same = (a.argmax(-1) == b.argmax(-1)).sum()
        mean = difference.mean(-1).sum()
        sums += torch.tensor([float(mean), float(kl), float(same), len(a)], dtype=torch.float64)
        largest = max(largest, float(difference.max()))
    mean, kl, same, positions = sums.tolist()
    return {
        "mean_logit_difference": mean / positions,
        "max_logit_difference": largest,
        "kl": max(0.0, kl / positions),
        "same_top_token": same / positions,
    }


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    return "\n".join(
        f"  {name} against adapter on the 4-bit base: mean logit difference "
        f"{row['mean_logit_difference']:.2g}, KL {row['kl']:.2g}, same top token "
        f"{row['same_top_token']:.1%}"
        for name, row in report.items()
    )
