"""The proof of a merge: logits of held-out articles against adapter on base, as it was trained.

Every model is run layer by layer, in fp32, and one layer of it is in memory at a time: so what
differs is the weights. What was trained runs through the very layers of bitsandbytes and peft.
Where a whole model would not fit in memory, some of its layers stand for all of them, one behind
the other. Knows nothing of how the merge was done.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.functional import kl_div

from generate import held_out
from generate.merge_layers import LayerOf, Runner, as_trained
from generate.merge_rows import Merged
from generate.merge_source import Opener, Source
from pressroom.console import Progress, UserError
from pressroom.geometry import Geometry
from pressroom.nn.base_rows import OriginalRows, Rows, whole
from pressroom.nn.pieces import empty_model
from pressroom.train_sections import Precision

FP32_TOLERANCE = 1e-4
"""Largest mean logit difference of an fp32 merge: above it something else was merged."""
KL_TOLERANCE, SAME_TOP_TOKEN = 0.01, 0.94
"""Of what was rounded to 16 bits: the largest KL, the lowest share of equal top tokens."""
SAMPLED = 8
"""Layers that stand for all where a model does not fit."""
TOKENS = 2048
"""At which logits are compared, in whole articles and a part of the last."""


def sampled_layers(num_layers: int, *, fits: bool) -> list[int]:
    """Which layers are run: all, or some from the first to the last.

    >>> sampled_layers(80, fits=False)
    [0, 11, 23, 34, 45, 56, 68, 79]
    """
    if fits or num_layers <= SAMPLED:
        return list(range(num_layers))
    return [round(i * (num_layers - 1) / (SAMPLED - 1)) for i in range(SAMPLED)]


def fits_whole(geometry: Geometry, device: torch.device) -> bool:
    """Whether the whole model would fit in free memory in fp32."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    return 4 * geometry.num_weights < free


def first_tokens(articles: Sequence[Sequence[int]], longest: int) -> list[list[int]]:
    """Articles up to some number of tokens in all; of each no more than a model's longest text."""
    chosen, left = [], TOKENS
    for article in articles:
        part = list(article[: min(left, longest)])
        if len(part) > 1:
            chosen.append(part)
        left -= len(part)
    return chosen


def compare(reference: list[torch.Tensor], other: Iterable[torch.Tensor]) -> dict[str, float]:
    """How far logits [S, V] are apart: differences, KL in nats, share of the same top token."""
    sums, largest = torch.zeros(4, dtype=torch.float64), 0.0
    for a, b in zip(reference, other, strict=True):
        difference = (a - b).abs()
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        kl = kl_div(log_b, log_a, reduction="sum", log_target=True)
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


def failure(row: dict[str, float], precision: Precision) -> str | None:
    """What of a comparison is beyond its bound; None where nothing is. Not-a-number always is."""
    mean, kl, same = (row[k] for k in ("mean_logit_difference", "kl", "same_top_token"))
    if precision == "fp32":
        return None if mean <= FP32_TOLERANCE else f"mean logit difference {mean:.2g}"
    if not kl <= KL_TOLERANCE:
        return f"KL {kl:.2g}"
    return None if same >= SAME_TOP_TOKEN else f"same top token {same:.1%}"


def prove(
    opened: Opener,
    folder: Path,
    articles: list[list[int]],
    precision: Precision,
    base_weights: str,
) -> tuple[dict[str, Any], str | None]:
    """Compare logits of what was trained with those of both merges in fp32, and of the folder.

    Args:
        opened: What was merged.
        folder: What came out.
        articles: As `texts` gives them.
        precision: Of the folder.
        base_weights: The choice that was merged into.

    Returns:
        By what is compared with adapter on base: how far it is apart, and where that was seen.
        And what of it shows that the merge is not what was trained, if anything does.
    """
    source, device = opened.source, opened.device
    geometry = Geometry.of(source.base)
    layers = sampled_layers(geometry.num_layers, fits=fits_whole(geometry, device))
    num_tokens = sum(map(len, articles))
    kind = "held-out articles" if source.run else "ids drawn by lot"
    is_original = base_weights == "original"
    has_both = is_original or (source.quantization is not None and not source.is_codes)
    what = f"verify at {num_tokens} tokens of {kind}, {len(layers)} of {geometry.num_layers} layers"
    progress = Progress(what, (4 if has_both else 3) * len(layers), "layer")
    empty = empty_model(source.base, None, "fp32")
    runner = Runner(empty, articles, layers, device, progress.advance)

    def logits(rows: Callable[[str], Rows], layer_of: LayerOf | None = None) -> list[torch.Tensor]:
        return list(runner.logits(lambda name: whole(rows(name), opened.shapes[name]), layer_of))

    def merged(choice: str) -> list[torch.Tensor]:
        return logits(Merged(opened.base(choice), source.adapter, torch.float32, device).rows)

    with progress:
        trained = logits(opened.base("dequantized").open, as_trained(source, device))
        rows = {"fp32": compare(trained, merged("dequantized"))}
        expected = trained
        if has_both:
            original = merged("original")
            rows["fp32, original weights"] = compare(trained, original)
            expected = original if is_original else trained
        written = logits(OriginalRows(folder, device).open)
    rows[precision + ", original weights" * is_original] = compare(trained, written)
    wrong = failure(rows["fp32"], "fp32") or failure(compare(expected, written), precision)
    seen = {
        "tokens": num_tokens,
        "texts": kind,
        "layers": layers,
        "num_layers": geometry.num_layers,
    }
    return {name: {**row, **seen} for name, row in rows.items()}, wrong


def texts(source: Source) -> list[list[int]]:
    """The held-out articles of a run's dataset; ids drawn by lot for an adapter without a run.

    Raises:
        UserError: The dataset is gone or damaged.
    """
    geometry = Geometry.of(source.base)
    if source.run:
        try:
            held = [article.ids for article in held_out.tokens(source.run.dataset)]
        except UserError as error:
            raise UserError(f"{error}\n--no-verify merges without a proof on its texts") from None
        return first_tokens(held, geometry.max_positions)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(geometry.vocab_size, (TOKENS,), generator=generator).tolist()
    return first_tokens([ids[i : i + 256] for i in range(0, TOKENS, 256)], geometry.max_positions)


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    return "\n".join(
        f"  {name} against adapter on the base as trained: mean logit difference "
        f"{row['mean_logit_difference']:.2g}, largest {row['max_logit_difference']:.2g}, "
        f"KL {row['kl']:.2g}, same top token {row['same_top_token']:.1%}"
        for name, row in report.items()
    )
