"""What fine-tuning has changed, on articles that were held out: `pressroom evaluate RUN`.

Losses first, base beside tuned: the mean NLL over the trained tokens, and beside it over the tokens
of the descriptions alone, for the template around them is cheap to learn. The base is the same
quantized model without the adapter; the unquantized base is a third row. Switching the adapter
off must give the base's numbers, on the CPU bit by bit, and that is checked here. Then what the
tuned model writes for held-out titles, beside what stands there.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from generate import descriptions, held_out, scores
from generate.held_out import HeldOut
from generate.scores import Total
from generate.tuned import base_folder, device, load_tuned
from pressroom.console import Progress, UserError, log
from pressroom.dataset import Manifest
from pressroom.files import publish_json
from pressroom.geometry import Geometry
from pressroom.nn.loss import token_nll
from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.samples import held_out_articles
from pressroom.seal import require_whole
from pressroom.tokenizer import ArticleTokenizer

FEW_ARTICLES = 50
GPU_TOLERANCE = 0.05
"""NLL of a token, adapter off against base. On the CPU it is bitwise; a GPU's kernels may add up in
another order from one load to the next."""
_GROUPS = ("category", "source")


def evaluate(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Score the held-out articles, and judge what is written for their titles: evaluation.json.

    Raises:
        UserError: The tuned model without its adapter is not the base, or something is damaged.
    """
    if recipe.evaluation.titles:
        require_whole(run.dataset, Manifest.read(run.dataset))  # before anything takes time
    result = score(run, recipe)
    publish_json(run.evaluation, result)  # whatever becomes of what follows
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the next model may be another process's
    texts = descriptions.write(run, recipe) if recipe.evaluation.titles else []
    if texts:
        result["written"] = descriptions.judged(run, recipe, texts)
        publish_json(run.evaluation, result)
    return result


def score(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Losses and perplexities of base, tuned and unquantized base.

    Raises:
        UserError: The tuned model without its adapter is not the base.
    """
    articles = held_out.tokens(run.dataset)
    size, precision = recipe.evaluation.micro_batch_size, recipe.memory.precision
    folder = base_folder(run, recipe)
    eos_id = ArticleTokenizer(folder).eos_id
    unquantized = recipe.quantization is not None and _fits(Geometry.of(folder))
    models = 4 if unquantized else 3
    found: dict[str, dict[str, list[Total]]] = {}
    with Progress(f"evaluate, {models} passes", models * len(articles), "text") as progress:
        base = _nll(
            load_base(folder, recipe.quantization, precision, device()), articles, size, progress
        )
        found["base"] = scores.totals(articles, base, eos_id)
        tuned_model = load_tuned(run, recipe)
        tuned = _nll(tuned_model, articles, size, progress)
        found["tuned"] = scores.totals(articles, tuned, eos_id)
        with tuned_model.disable_adapter():
            without = _nll(tuned_model, articles, size, progress)
        del tuned_model
        if unquantized:
            plain = load_base(folder, None, precision, device())
            nll = _nll(plain, articles, size, progress)
            found["unquantized base"] = scores.totals(articles, nll, eos_id)
    apart = _require_base(base, without)
    count = Manifest.read(run.dataset).counts["held_out"]
    if count < FEW_ARTICLES:
        log.warning(
            "only %d held-out texts: perplexities this few are rough; data.held_out keeps more",
            count,
        )
    losses = {
        name: {kind: scores.loss(totals) for kind, totals in kinds.items()}
        for name, kinds in found.items()
    }
    perplexity = {n: {k: math.exp(loss) for k, loss in row.items()} for n, row in losses.items()}
    return {
        "articles": count,
        "trained_tokens": sum(total.tokens for total in found["base"]["trained"]),
        "loss": losses,
        "perplexity": perplexity,
        "by": _by_group(run, found["base"]["trained"], found["tuned"]["trained"]),
        "adapter_off_is_base_bitwise": apart == 0.0,
        "adapter_off_largest_difference": apart,
    }


def _require_base(base: list[torch.Tensor], without: list[torch.Tensor]) -> float:
    """See that the tuned model without its adapter is the base; how far it is from that.

    Raises:
        UserError: Too far.
    """
    each = [(a - b).abs() for a, b in zip(base, without, strict=True)]
    apart = float(torch.cat(each).max())  # not a number, if one is
    if not apart <= (GPU_TOLERANCE if torch.cuda.is_available() else 0.0):
        raise UserError(
            f"with the adapter switched off the model is not the base (NLL of a token up to "
            f"{apart:.2g} apart): do not trust it"
        )
    return apart


def _by_group(run: RunDir, base: list[Total], tuned: list[Total]) -> dict[str, Any]:
    """Losses by what articles are about and where they are from, where that is said."""
    ids = held_out.article_ids(run.dataset)
    articles = {article["id"]: article for article in held_out_articles(run.dataset)}
    found = {}
    for group in _GROUPS:
        names = [(articles[article].get(group) or "").strip() for article in ids]
        if rows := scores.by_group(names, ids, base, tuned):
            found[group] = rows
    return found


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
