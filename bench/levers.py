"""Each lever of a step alone, beside the same trainer with that lever off; on a CPU.

    OMP_NUM_THREADS=1 python bench/levers.py --rows bench/results.jsonl

Trainers take turns step by step, as in `side_by_side.py`; the rest is measured by
`levers_alone.py` and counted by `levers_counted.py`. Each row has what was predicted of it before
anything was measured.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from levers_alone import ALONE
from levers_counted import COUNTED
from record import append, facts
from side_by_side import WARMUP, Change, geometry, measure, ratios
from torch.utils.data import DataLoader
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pressroom.console import entry, log, say
from train.attention import _register
from train.attention_backends import BACKENDS

PLAIN, DENSE, LEAN = (
    f"pressroom:1:none:{way}" for way in ("blocks:plain", "dense:plain", "blocks")
)
SELECTIVE, FULL = (PLAIN.replace("none", mode) for mode in ("selective", "full"))
DENSE_SELECTIVE = DENSE.replace("none", "selective")
FEW = "+lora.target_modules=[q_proj,v_proj]"


def compiled(trainer: Any) -> None:
    """Compile the decoder layers, but for attention: its shapes are others in each row."""
    compiler: Any = torch.compiler  # not typed
    for name, attend in BACKENDS.items():
        _register(name, compiler.disable(attend))
    for module in trainer.model.modules():
        if isinstance(module, LlamaDecoderLayer):
            module.compile()


def whole_logits(trainer: Any) -> None:
    """The loss by PyTorch's cross entropy, over logits that exist as a whole."""
    base = trainer.model.get_base_model()
    plain = type(base).forward.__get__(base)

    def forward(*, trained: Any, targets: Any, scale: Any, **inputs: Any) -> Any:
        output = plain(**inputs)
        logits = output.logits[0, trained].float()
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        output.loss = nll * scale
        return output

    base.forward = forward


def with_worker(trainer: Any) -> None:
    """Collate in another process."""
    alone = trainer.get_train_dataloader()
    trainer.get_train_dataloader = lambda: DataLoader(
        alone.dataset,
        batch_sampler=alone.batch_sampler,
        collate_fn=alone.collate_fn,
        num_workers=1,
    )


@dataclass(frozen=True)
class Case:
    """A lever that is on, and what is expected of it."""

    lever: str
    variant: str
    predicted: str
    change: Change | None = None


GROUPS: dict[str, tuple[tuple[str, str], tuple[Case, ...]]] = {
    "dense": (
        ("plain layers, dense mask", DENSE),
        (
            Case("torch.compile, dense mask", DENSE, "1.12", compiled),
            Case("selective checkpointing, dense mask", DENSE_SELECTIVE, "0.88"),
        ),
    ),
    "compile": (
        ("plain layers", PLAIN),
        (
            Case("torch.compile, but for attention by blocks", PLAIN, "1.10", compiled),
            Case("lean layers", LEAN, "1.25"),
        ),
    ),
    "few": (
        ("plain layers, adapters on q_proj and v_proj", PLAIN + FEW),
        (Case("the same, compiled but for attention", PLAIN + FEW, "1.10", compiled),),
    ),
    "checkpointing": (
        ("plain layers", PLAIN),
        (
            Case("selective checkpointing, plain layers", SELECTIVE, "0.88"),
            Case("full checkpointing, plain layers", FULL, "0.70"),
        ),
    ),
    "lean checkpointing": (
        ("lean layers", LEAN),
        (Case("full checkpointing, lean layers", LEAN.replace("none", "full"), "0.70"),),
    ),
    "optimizer": (
        ("adamw_torch, 0.9 million parameters", LEAN + "+optimizer.name=adamw_torch"),
        (
            Case("adamw_torch_fused", LEAN, "1.01"),
            Case("paged_adamw_32bit", LEAN + "+optimizer.name=paged_adamw_32bit", ""),
            Case("paged_adamw_8bit", LEAN + "+optimizer.name=paged_adamw_8bit", ""),
        ),
    ),
    "loss": (
        ("whole logits, 4,096 words", LEAN),
        (Case("chunked loss", LEAN, "1.03"),),
    ),
    "worker": (
        ("no data worker", LEAN),
        (Case("a data worker", LEAN, "1.00", with_worker),),
    ),
}
"""What is off in the first of each, and what takes turns with it."""
OFF: dict[str, Change] = {"loss": whole_logits}
OTHERS = {**ALONE, **COUNTED}


def in_turn(group: str, hidden: int, layers: int, steps: int) -> list[dict[str, Any]]:
    """A row for each lever of a group."""
    (beside, off), cases = GROUPS[group]
    texts = [off, *(case.variant for case in cases)]
    changes = [OFF.get(group), *(case.change for case in cases)]
    start = time.perf_counter()
    told = measure(texts, geometry(hidden, layers), "bf16", steps + WARMUP, changes)
    log.info("%s: %.0f s", group, time.perf_counter() - start)
    rows = []
    for case, own in zip(cases, told[1:], strict=True):
        by_clock, by_core = ratios(told[0][WARMUP:], own[WARMUP:])
        first = sum(step[1] for step in own[:WARMUP]) - WARMUP * own[-1][1]
        more = f"{first:.0f} s of a core to compile" if case.change is compiled else ""
        row = {"lever": case.lever, "beside": beside, "predicted": case.predicted, "more": more}
        losses = {"loss": round(own[-1][2], 4), "loss_beside": round(told[0][-1][2], 4)}
        rows.append(row | {"ratio": by_clock, "ratio_of_core_seconds": by_core, **losses})
    return rows


@click.command()
@click.option("--item", "items", multiple=True, type=click.Choice([*GROUPS, *OTHERS]))
@click.option("--hidden", type=int, default=512, show_default=True)
@click.option("--layers", type=int, default=6, show_default=True)
@click.option("--steps", type=int, default=16, show_default=True)
@click.option("--rows", "path", default="build/levers.jsonl", show_default=True, type=Path)
def main(items: tuple[str, ...], hidden: int, layers: int, steps: int, path: Path) -> None:
    """Each lever of a step alone: how many times as long a step takes without it."""
    torch.set_num_threads(1)
    for item in items or (*GROUPS, *OTHERS):
        shape = geometry(hidden, layers)
        found = in_turn(item, hidden, layers, steps) if item in GROUPS else OTHERS[item](shape)
        for row in found:
            load = [round(number, 1) for number in os.getloadavg()]
            append(path, {"bench": "levers", **facts(), "item": item, **row, "load": load})
            ratio = row["ratio_of_core_seconds"]
            say(f"{row['lever']:48}{ratio} by time on a core, {row['ratio']}; {row['more']}")


if __name__ == "__main__":
    entry(main)
