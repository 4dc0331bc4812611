"""Held-out perplexity, base beside tuned: `pressroom evaluate RUN`.

Perplexity is exp of the mean NLL over the trained tokens, and beside it over the tokens of the
descriptions alone, for the template around them is cheap to learn. The base is the same
quantized model without the adapter; the unquantized base is a third row. Switching the adapter
off must give the base's numbers, on the CPU bit by bit, and that is checked here.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from generate import held_out
from generate.held_out import HeldOut
from generate.tuned import base_folder, device, load_tuned
from pressroom.console import Progress, UserError, log
from pressroom.dataset import IGNORE, Manifest
from pressroom.geometry import Geometry
from pressroom.nn.loss import token_nll
from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.tokenizer import ArticleTokenizer

FEW_ARTICLES = 50
GPU_TOLERANCE = 0.05
"""NLL of a token, adapter off against base. On the CPU it is bitwise; a GPU's kernels may add up in
another order from one load to the next."""


def evaluate(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Score the held-out articles with base, tuned and unquantized base.

    Raises:
        UserError: The tuned model without its adapter is not the base.
    """
    articles = held_out.tokens(run.dataset)
    size, precision = recipe.evaluation.micro_batch_size, recipe.memory.precision
    folder = base_folder(run, recipe)
    eos_id = ArticleTokenizer(folder).eos_id
    unquantized = recipe.quantization is not None and _fits(Geometry.of(folder))
    models = 4 if unquantized else 3
    with Progress(f"evaluate, {models} passes", models * len(articles), "text") as progress:
        base = _nll(
            load_base(folder, recipe.quantization, precision, device()), articles, size, progress
        )
        tuned_model = load_tuned(run, recipe)
        tuned = _nll(tuned_model, articles, size, progress)
        with tuned_model.disable_adapter():
            without = _nll(tuned_model, articles, size, progress)
        del tuned_model
        rows = {
            "base": perplexity(articles, base, eos_id),
            "tuned": perplexity(articles, tuned, eos_id),
        }
        if unquantized:
            plain = load_base(folder, None, precision, device())
            nll = _nll(plain, articles, size, progress)
            rows["unquantized base"] = perplexity(articles, nll, eos_id)
    if len(articles) < FEW_ARTICLES:
        log.warning(
            "only %d held-out texts: perplexities this few are rough; data.held_out keeps more",
            len(articles),
        )
    apart = max(float((a - b).abs().max()) for a, b in zip(base, without, strict=True))
    if apart > (GPU_TOLERANCE if torch.cuda.is_available() else 0.0):
        raise UserError(
            f"with the adapter switched off the model is not the base (NLL of a token up to "
            f"{apart:.2g} apart): do not trust it"
        )
    return {
        "articles": Manifest.read(run.dataset).counts["held_out"],
        "trained_tokens": sum(sum(x != IGNORE for x in a.labels[1:]) for a in articles),
        "perplexity": rows,
        "adapter_off_is_base_bitwise": apart == 0.0,
        "adapter_off_largest_difference": apart,
    }


def _fits(geometry: Geometry) -> bool:
    """Whether the base fits the GPU in 16 bits; where there is no GPU, host memory is trusted."""
    if not torch.cuda.is_available():
        return True
    free, _ = torch.cuda.mem_get_info()
    fits = 2 * geometry.num_weights < 0.9 * free
    if not fits:
        log.info("the unquantized base does not fit this GPU: its row is left out")
    return fits


def _nll(
    model: PreTrainedModel, articles: list[HeldOut], size: int, progress: Progress
) -> list[torch.Tensor]:
    """NLL of each article's tokens, [S] on the CPU; zero where there is no label."""
    scored: list[torch.Tensor] = [torch.empty(0)] * len(articles)
    for chosen, ids_BS, labels_BS in held_out.batches(articles, size, device()):
        nll_BS = token_nll(model, ids_BS, labels_BS).cpu()
        for index, nll_S in zip(chosen, nll_BS, strict=True):
            scored[index] = nll_S[: len(articles[index].ids)]
        progress.advance(len(chosen))
    return scored


def perplexity(articles: list[HeldOut], nll: list[torch.Tensor], eos_id: int) -> dict[str, float]:
    """Perplexity over trained tokens, and over description tokens without eos."""
    sums = {"trained": [0.0, 0], "description": [0.0, 0]}
    for article, nll_S in zip(articles, nll, strict=True):
        counted = torch.tensor(article.labels) != IGNORE
        counted[0] = False
        description = counted.clone()
        description[: article.prompt_length] = False
        description[-1] &= article.ids[-1] != eos_id
        for name, mask in (("trained", counted), ("description", description)):
            sums[name][0] += float(nll_S[mask].double().sum())
            sums[name][1] += int(mask.sum())
    return {name: math.exp(total / max(count, 1)) for name, (total, count) in sums.items()}


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    base = result["perplexity"]["base"]
    lines = [
        f"held-out perplexity ({result['articles']} articles, "
        f"{result['trained_tokens']:,} trained tokens)",
        f"  {'':30}{'trained tokens':>16}{'description':>22}",
    ]
    for name, row in result["perplexity"].items():
        cells = [
            f"{row[kind]:.2f}" + ("" if name == "base" else f" ({row[kind] / base[kind] - 1:+.0%})")
            for kind in ("trained", "description")
        ]
        label = f"{name} (to compare)" if name == "unquantized base" else name
        lines.append(f"  {label:30}{cells[0]:>16}{cells[1]:>22}")
    return "\n".join(lines)
