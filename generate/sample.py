"""Prompts or titles -> text: `pressroom generate RUN "city!"`.

A prompt is continued as it stands behind BOS; a title is rendered in the recipe's format up to
where the description begins. Without either, the recipe's generation section is done: its
prompts and some held-out titles, tuned beside base, into samples.jsonl; with other lengths or
temperatures than the recipe's they are only shown.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from generate.tuned import base_folder, device, load_tuned
from pressroom.base_model import model_folder
from pressroom.console import Progress, log
from pressroom.files import readable
from pressroom.nn import sampling
from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.samples import Request, of_title, recipe_requests
from pressroom.tokenizer import ArticleTokenizer


def texts(
    run: RunDir,
    recipe: Recipe,
    prompts: Sequence[str],
    titles: Sequence[str],
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """What the tuned model writes for prompts, as they stand, and then for titles."""
    torch.manual_seed(seed)
    requests = [Request(prompt) for prompt in prompts] + [of_title(t, recipe) for t in titles]
    written = write(_tuned(run, recipe), recipe, requests, max_new_tokens, temperature)
    return [one["text"] for one in written]


def write(
    model: PreTrainedModel,
    recipe: Recipe,
    requests: list[Request],
    max_new_tokens: int,
    temperature: float,
) -> list[dict[str, Any]]:
    """Continue each request, with progress shown: as `sampling.write`."""
    tokenizer = ArticleTokenizer(model_folder(recipe.model, weights=False))
    with Progress(f"write {len(requests)} texts", max_new_tokens, "token") as progress:
        return sampling.write(
            model,
            tokenizer,
            [request.prompt for request in requests],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            progress=progress,
        )


def beside_base(
    run: RunDir, recipe: Recipe, max_new_tokens: int, temperature: float, seed: int = 0
) -> list[dict[str, Any]]:
    """What the tuned model and the base write for the recipe's requests."""
    torch.manual_seed(seed)
    requests = recipe_requests(run.dataset, recipe)
    log.info("writing %d texts with the tuned model and with the base", len(requests))
    tuned = write(_tuned(run, recipe), recipe, requests, max_new_tokens, temperature)
    folder = base_folder(run, recipe)
    base_model = load_base(folder, recipe.quantization, recipe.memory.precision, device())
    base = write(base_model, recipe, requests, max_new_tokens, temperature)
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


def _tuned(run: RunDir, recipe: Recipe) -> PreTrainedModel:
    """The merged model where there is one, else the adapter on its base."""
    logging.disable_progress_bar()
    if run.merged.is_dir():
        with readable(run.merged, "delete it, or merge again with `pressroom merge`"):
            return AutoModelForCausalLM.from_pretrained(
                run.merged, dtype="auto", device_map={"": device()}
            )
    return load_tuned(run, recipe)


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
