"""What a run's recipe asks to be written, tuned beside base: `pressroom generate RUN`.

Its prompts are continued as they stand; titles of held-out articles are rendered in its format up
to where the description begins. Texts of the user's own are `generate/texts.py`'s.
"""

from typing import Any

from transformers import PreTrainedModel

from generate.origin import named
from generate.tuned import base_folder, device
from generate.voice import Voice
from pressroom.base_model import model_folder
from pressroom.console import Progress, log
from pressroom.nn import sampling
from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.samples import Request, Sampling, recipe_requests
from pressroom.tokenizer import ArticleTokenizer


def beside_base(run: RunDir, recipe: Recipe, how: Sampling) -> list[dict[str, Any]]:
    """What the run's model and the base write for the recipe's requests."""
    requests = recipe_requests(run.dataset, recipe)
    log.info("writing %d texts with the tuned model and with the base", len(requests))
    tuned = _write(Voice(named(str(run.path))).load(device()), recipe, requests, how)
    folder = base_folder(run, recipe)
    base_model = load_base(folder, recipe.quantization, recipe.memory.precision, device())
    base = _write(base_model, recipe, requests, how)
    return [
        {
            "prompt": request.prompt,
            "title": request.title,
            "article_id": request.article_id,
            "reference": request.reference,
            "tuned": of_tuned,
            "base": of_base,
        }
        for request, of_tuned, of_base in zip(requests, tuned, base, strict=True)
    ]


def _write(
    model: PreTrainedModel, recipe: Recipe, requests: list[Request], how: Sampling
) -> list[dict[str, Any]]:
    tokenizer = ArticleTokenizer(model_folder(recipe.model, weights=False))
    with Progress(f"write {len(requests)} texts", how.max_new_tokens, "token") as progress:
        prompts = [request.prompt for request in requests]
        return sampling.write(model, tokenizer, prompts, how, progress=progress)


def show(samples: list[dict[str, Any]]) -> str:
    """Samples for a person."""
    lines = []
    for sample in samples:
        for name in ("tuned", "base"):
            end = "" if sample[name]["ended"] else " [cut]"
            lines.append(f"{name:>6}: {sample[name]['text']}{end}")
        if sample["reference"]:
            lines.append(f"  real: {sample['reference']}")
        lines.append("")
    return "\n".join(lines)
