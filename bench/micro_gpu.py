"""The ceilings of one GPU in a minute: what a training step can at best be made of.

    python bench/micro_gpu.py                   # Llama 2's 7B and 70B, on a GPU
    python bench/micro_gpu.py --geometry tiny   # does everything run; on a CPU, in seconds

Each figure is appended to the file of rows as soon as it is there. Knows nothing of training.
"""

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from geometries import GEOMETRIES
from micro_attention import attentions, varlen_signature
from micro_cases import (
    Case,
    adapters,
    copies,
    dequantizations,
    gemms,
    random,
)
from micro_elementwise import elementwise
from record import append, facts
from timing import measure

from pressroom.console import UserError, entry, log, say


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--geometry",
    "geometries",
    multiple=True,
    default=("7b", "70b"),
    type=click.Choice(tuple(GEOMETRIES)),
    help="Whose shapes; may be given several times. Default: 7b and 70b.",
)
@click.option("--seconds", default=60.0, show_default=True, help="What does not fit is skipped.")
@click.option("--rows", "path", default="build/micro_gpu.jsonl", show_default=True, type=Path)
def main(geometries: tuple[str, ...], seconds: float, path: Path) -> None:
    """Measure what a training step is made of."""
    if not torch.cuda.is_available() and geometries != ("tiny",):
        raise UserError("no CUDA device here: --geometry tiny tries everything on the CPU")
    # A compiled backward otherwise gives its saved tensors away, and runs once only.
    torch._functorch.config.donated_buffer = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    common = {"bench": "micro_gpu", **facts()}
    predicted = "H200" in common["hardware"]
    warm_up(device)
    gc.freeze()  # collecting after each case then passes over what was imported
    start, rows = time.monotonic(), []
    for case in cases(geometries):
        left = seconds - (time.monotonic() - start)
        row = common | figures(case, device, left, predicted=predicted)
        append(path, row)
        rows.append(row)
    log.info("%d rows in %.0f s, appended to %s", len(rows), time.monotonic() - start, path)
    say(f"{common['hardware']}, torch {common['torch']}, CUDA {common['cuda']}")
    say(varlen_signature())
    say("\n".join(table(rows)))


def warm_up(device: torch.device) -> None:
    """A second of work: a GPU that was idle raises its clocks only then."""
    if device.type == "cuda":
        square = random(8192, 8192, device=device)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            square @ square
            torch.cuda.synchronize()


def cases(geometries: tuple[str, ...]) -> Iterator[Case]:
    """Everything, what matters most first, what has to be compiled last."""
    for geometry in geometries:
        yield from gemms(geometry)
    for geometry in geometries:
        yield from dequantizations(geometry)
    yield from copies(1 if geometries == ("tiny",) else 2000)
    for geometry in geometries:
        yield from attentions(geometry, compiled=False)
        yield from adapters(geometry)
        yield from elementwise(geometry, compiled=False)
    for geometry in geometries:
        yield from elementwise(geometry, compiled=True)
        yield from attentions(geometry, compiled=True)


def figures(
    case: Case, device: torch.device, seconds_left: float, *, predicted: bool
) -> dict[str, Any]:
    """A case's own part of its row.

    Args:
        case: What to measure.
        device: Where.
        seconds_left: It is skipped when it may cost more.
        predicted: Whether the predictions are for this device.

    Returns:
        `measured` is null and `absent` says why where there is no figure.
    """
    row = {
        "item": case.item,
        "geometry": case.geometry,
        "case": case.case,
        "column": case.column,
        "unit": case.unit,
        "expected": case.expected if predicted else None,
        "measured": None,
        "absent": None,
    }
    if case.seconds > seconds_left:
        return row | {"absent": "skipped: the time was spent"}
    timed = min(case.seconds, 0.3 if device.type == "cuda" else 0.02)
    try:
        timing = measure(case.make(device), device, timed)
    except Exception as error:  # a backend that is not there must not cost the others' figures
        return row | {"absent": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    scale = 1e12 if case.unit == "TFLOP/s" else 1e9
    return row | {
        "measured": round(case.work / timing.median / scale, 6),
        "median_us": round(timing.median * 1e6, 2),
        "low_us": round(timing.low * 1e6, 2),
        "high_us": round(timing.high * 1e6, 2),
        "calls": timing.calls,
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for the figures that differ in their column alone."""
    lines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["item"], row["geometry"], row["case"], row["unit"])
        lines.setdefault(key, []).append(row)
    for (item, geometry, case, unit), found in lines.items():
        cells = "".join(
            f"  {row['column']} {row['measured']:.4g}".rstrip() for row in found if row["measured"]
        )
        expected = [f"{row['expected']:g}" for row in found if row["expected"]]
        predicted = f" (expected {'/'.join(dict.fromkeys(expected))})" if expected else ""
        why = next((f"  {row['absent'][:70]}" for row in found if row["absent"]), "")
        shown = f"{cells} {unit}{predicted}" if cells else ""
        yield f"{item:24} {geometry:5} {case:22}{shown}{why}"


if __name__ == "__main__":
    entry(main)
