"""Levers without a trainer around them: the update, the head, the loader; both ways in turn.

Each gives rows, whose ratios say how many times as long it takes without the lever.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from host import rank_loader
from levers_counted import peak
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from pressroom.geometry import SIZES, Geometry
from train.loss import _HeadNLL

Row = dict[str, Any]
ROUNDS = 7
UPDATES = {"adamw_torch": "3.5", "paged_adamw_32bit": "3", "paged_adamw_8bit": "8"}
"""Times the fused update's time that each was predicted to take."""


def compare(off: Callable[[], Any], on: Callable[[], Any], rounds: int = ROUNDS) -> Row:
    """Both in turn: how many times as long the first takes, by the clock and on a core."""
    took: dict[Callable[[], Any], list[tuple[float, float]]] = {off: [], on: []}
    for _ in range(rounds + 1):
        for call, times in took.items():
            start = time.perf_counter(), time.process_time()
            call()
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    pairs = list(zip(took[off][1:], took[on][1:], strict=True))
    wall, core = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
    milliseconds = [1e3 * statistics.median(t[1] for t in took[c][1:]) for c in (off, on)]
    return {
        "ratio": round(wall, 2),
        "ratio_of_core_seconds": round(core, 2),
        "core_ms": [round(n, 2) for n in milliseconds],
    }


def update(_: Geometry) -> Iterator[Row]:
    """The update alone, of the adapters of 7B with rank 16 and 64."""
    shapes = SIZES["7b"].linear_shapes.values()
    for rank in (16, 64):
        sizes = [s for out, into in shapes for s in ((rank, into), (out, rank))]
        sizes *= SIZES["7b"].num_layers
        count = sum(a * b for a, b in sizes)
        fused = _optimizer("adamw_torch_fused", sizes)
        for name, predicted in UPDATES.items():
            other = _optimizer(name, sizes)
            row = compare(other.step, fused.step, 3)
            slow, fast = row["core_ms"]
            more = f"{fast:.0f} beside {slow:.0f} ms"
            lever = f"adamw_torch_fused, the update of {count / 1e6:.0f} million alone"
            yield {"lever": lever, "beside": name, "predicted": predicted, "more": more, **row}


def _optimizer(name: str, sizes: Iterable[tuple[int, int]]) -> torch.optim.Optimizer:
    kind, options = Trainer.get_optimizer_cls_and_kwargs(
        TrainingArguments(output_dir="build", optim=name, use_cpu=True, report_to="none")
    )
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    made: torch.optim.Optimizer = kind(parameters, **options)
    return made


def head(_: Geometry) -> Iterator[Row]:
    """Loss and its gradient by the hidden states: 2,048 tokens of 512, 32,000 words."""
    hidden_TD: Any = torch.randn(2048, 512, dtype=torch.bfloat16, requires_grad=True)
    weight_VD = torch.randn(32_000, 512, dtype=torch.bfloat16) * 0.02
    targets_T = torch.randint(0, 32_000, (2048,))
    scale = torch.tensor(1 / 2048)

    head_nll: Any = _HeadNLL  # not typed

    def whole() -> None:
        logits_TV = (hidden_TD @ weight_VD.T).float()
        nll: Any = torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="sum")
        (nll * scale).backward()

    def chunked() -> None:
        head_nll.apply(hidden_TD, weight_VD, targets_T, scale).backward()

    row = compare(whole, chunked)
    most = [peak(call) for call in (whole, chunked)]
    share = f"peak {most[1] / 1e6:.0f} of {most[0] / 1e6:.0f} MB, {most[1] / most[0]:.2f}"
    told = {"predicted": "1.2; peak bytes 0.35", "more": share, **row}
    yield {"lever": "chunked loss alone, 32,000 words", "beside": "whole logits", **told}


def loader(_: Geometry) -> Iterator[Row]:
    """A rank's loader, read as fast as it gives, beside one whose rows a worker collates."""
    alone = rank_loader(4)
    worker = DataLoader(
        alone.dataset,
        batch_sampler=alone.batch_sampler,
        collate_fn=alone.collate_fn,
        num_workers=1,
    )
    row = compare(lambda: sum(1 for _ in alone), lambda: sum(1 for _ in worker), 3)
    told = {"predicted": "0.6 by the clock", "more": "start of the worker included", **row}
    yield {"lever": "a data worker, the loader alone", "beside": "none", **told}


ALONE: dict[str, Callable[[Geometry], Iterable[Row]]] = {
    "update": update,
    "head": head,
    "loader": loader,
}
