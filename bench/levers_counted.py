"""What time on a CPU does not show: bytes that a layer keeps, and how often a GPU is waited for.

Each gives rows without ratios. Knows nothing of time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from random_model import random_base
from random_rows import random_rows
from stacks import Variant, build
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from pressroom.geometry import Geometry

Row = dict[str, Any]
ROW, ARTICLE, ACCUMULATION, STEPS = 512, 150, 4, 10
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount"}
"""Operators that cannot return before a GPU has computed: they give the host a value or a size."""
FETCHES = ("tolist", "cpu", "numpy")
"""Methods that do the same, and are no operators on a CPU."""
NONE = {"ratio": None, "ratio_of_core_seconds": None}


def allocations(call: Callable[[], Any]) -> tuple[list[int], Any]:
    """Bytes of each allocation and, below zero, of what is freed, while something runs."""
    with profile(profile_memory=True) as seen:
        made = call()
    events = cast(Any, seen).profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]"], made


def peak(call: Callable[[], Any]) -> int:
    """The most bytes that there are at a time while something runs, beyond those before."""
    total = most = 0
    for nbytes in allocations(call)[0]:
        total += nbytes
        most = max(most, total)
    return most


def kept(shape: Geometry) -> Iterator[Row]:
    """Bytes that a token leaves in a layer between forward and backward pass."""
    cases = {
        "selective checkpointing, plain layers": ("plain", "selective", "0.57"),
        "full checkpointing, plain layers": ("plain", "full", "0.06"),
        "full checkpointing, lean layers": ("all", "full", "0.09"),
    }
    for lever, (save, mode, predicted) in cases.items():
        of_save = "auto" if save == "all" else save
        off, on = (kept_of(f"pressroom:1:{m}:blocks:{of_save}", shape) for m in ("none", mode))
        more = f"{on / 1e3:.1f} of {off / 1e3:.1f} kB a token and layer, {on / off:.2f}"
        told = {"predicted": f"kept bytes {predicted}", "more": more}
        yield {"lever": lever, "beside": "none", **told, **NONE, "kept": [round(off), round(on)]}


def kept_of(text: str, shape: Geometry) -> float:
    """Of one variant: by the difference of two depths, which leaves out what is kept once."""
    found = []
    for depth in (1, 3):
        of_depth = Geometry(**{**vars(shape), "num_layers": depth})
        trainer, seen = _trainer(text, of_depth, 2, 1), [0.0]
        plain = trainer.compute_loss

        def watched(
            model: Any, inputs: Any, plain: Any = plain, seen: Any = seen, **options: Any
        ) -> Any:
            sizes, loss = allocations(lambda: plain(model, inputs, **options))
            seen.append(sum(sizes) / inputs["input_ids"].numel())
            return loss

        trainer.compute_loss = watched
        trainer.train()
        found.append(seen[-1])
    return (found[1] - found[0]) / 2


def _trainer(text: str, shape: Geometry, steps: int, accumulation: int) -> Any:
    rows = random_rows(accumulation * steps, ROW, ARTICLE, shape.vocab_size)
    base = random_base(shape, torch.device("cpu"))
    return build(Variant.parse(text), base, rows, shape, steps, accumulation)


def waits(shape: Geometry) -> Iterator[Row]:
    """How often a step of four micro-batches would wait for a GPU, after its rows are there."""
    small = Geometry(**{**vars(shape), "num_layers": 1})
    counts = [_waits_of(text, small) for text in ("trl:1:none", "pressroom:1:none:blocks")]
    more = f"{counts[1]:g} beside {counts[0]:g} a step of {ACCUMULATION} micro-batches"
    told = {"predicted": "1 beside 25", "more": more, **NONE}
    yield {"lever": "no sync in a micro-step, waits", "beside": "SFTTrainer", **told}


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would wait for a GPU."""

    count, is_on = 0, False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        masked = name == "index" and any(
            i is not None and i.dtype == torch.bool for i in arguments[1]
        )
        self.count += self.is_on and (name in WAITS or masked)
        return function(*arguments, **(keywords or {}))


def _waits_of(text: str, shape: Geometry) -> float:
    """Of steps but the last, for what ends a training is no step."""
    trainer, counts = _trainer(text, shape, STEPS + 1, ACCUMULATION), [0]
    fetch = trainer.get_batch_samples
    with _counting() as seen:

        def rows_of_step(*arguments: Any) -> Any:
            counts.append(seen.count)
            seen.is_on = False
            batches = fetch(*arguments)
            seen.is_on = True
            return batches

        trainer.get_batch_samples = rows_of_step
        trainer.train()
    return counts[STEPS + 1] / STEPS


@contextmanager
def _counting() -> Iterator[Waits]:
    plain = {name: getattr(torch.Tensor, name) for name in FETCHES}
    seen: Any = cast(Any, Waits)()

    def counted(name: str) -> Any:
        def method(tensor: torch.Tensor, *arguments: Any) -> Any:
            seen.count += seen.is_on
            return plain[name](tensor, *arguments)

        return method

    for name in FETCHES:
        setattr(torch.Tensor, name, counted(name))
    try:
        with seen:
            yield seen
    finally:
        for name, method in plain.items():
            setattr(torch.Tensor, name, method)


COUNTED: dict[str, Callable[[Geometry], Iterable[Row]]] = {"kept": kept, "waits": waits}
