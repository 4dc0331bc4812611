"""What merging costs beside its bare arithmetic, and how much memory it takes.

    python bench/merge.py

A Llama with random weights, its NF4 codes and random adapters lie on the disk. The bare arithmetic
has the same tensors in memory and throws away what it computes: `whole` is dequantize, B·A, add and
round of whole tensors, as peft does it; `sliced` the same in slices that fit a core's caches, on
all cores, as the merge does it. Merge and bare arithmetic take turns, so that whatever else the
machine does meets both alike. A process of its own measures memory, and compares every tensor with
the merge in one memory.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import click
import torch
from merge_inputs import CPU, GEOMETRIES, make, source_in
from record import append, facts
from safetensors.torch import load_file

from generate.merge import Options, merge
from generate.merge_rows import added
from generate.merge_source import Opener
from pressroom.console import entry, log, say
from pressroom.geometry import SIZES
from pressroom.nn.base_rows import slices
from pressroom.nn.nf4 import load_base
from pressroom.train_sections import Quantization


def bare_whole(opened: Opener) -> Callable[[], None]:
    """The arithmetic on whole tensors, which are in memory."""
    weights: dict[str, Any] = {}
    factors: dict[str, Any] = {}
    states: dict[str, Any] = {}
    base: Any = opened.base("dequantized")
    for name in opened.shapes:
        weights[name] = base.files.read(name).clone()
        if name in opened.quantized:
            stats = {k: v.clone() for k, v in base.files.below(f"{name}.").items()}
            states[name] = bnb.functional.QuantState.from_dict(stats, CPU)
            states[name].dtype = torch.float32
            factors[name] = opened.source.adapter.factors(name, CPU)

    def run() -> None:
        for name, weight in weights.items():
            if name in states:
                full = bnb.functional.dequantize_4bit(weight, states[name])
                own = factors[name]
                full += (own.b_OR @ own.a_RI) * own.scale
                full.bfloat16()
            else:
                weight.float().bfloat16()

    return run


def bare_sliced(opened: Opener) -> Callable[[], None]:
    """The arithmetic in slices, by as many threads as there are cores; from mapped files."""
    base: Any = opened.base("dequantized")
    rows = {name: base.open(name) for name in opened.shapes}
    factors = {name: opened.source.adapter.factors(name, CPU) for name in opened.shapes}
    parts = [(n, *part) for n, shape in opened.shapes.items() for part in slices(shape)]

    def one(part: tuple[str, int, int]) -> None:
        name, first, last = part
        added(rows[name](first, last), factors[name], first, last).bfloat16()

    def run() -> None:
        before = torch.get_num_threads()
        with ThreadPoolExecutor(cores(), initializer=lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(one, parts))
        torch.set_num_threads(before)

    return run


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """How long a call takes: on the clock, and on cores."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


@contextmanager
def peak_anonymous() -> Iterator[list[int]]:
    """The most RssAnon above that at the start, in bytes, once the block is over."""
    before, over = _anonymous(), threading.Event()
    found = [0]

    def watch() -> None:
        while not over.wait(0.002):
            found[0] = max(found[0], _anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    over.set()
    thread.join()


def _anonymous() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


def memory_and_tensors(folder: Path, shard_size: str) -> dict[str, Any]:
    """Memory of one merge, and how far its tensors are from the merge in one memory."""
    from peft import PeftModel

    output = folder / "merged-in-a-process"
    with peak_anonymous() as peak, torch.no_grad():
        merge(source_in(folder), output, Options(shard_size=shard_size, verify=False))
    base = load_base(folder / "model", Quantization(), "bf16", CPU)
    linears = {n: m for n, m in base.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    for name, linear in linears.items():
        linear.weight.quant_state.dtype = torch.float32
        weight = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        base.set_submodule(name, plain)
    expected = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
    written = {k: v for p in output.glob("*.safetensors") for k, v in load_file(p).items()}
    same, apart, ulps = 0, 0, 0.0
    for name, tensor in expected.named_parameters():
        own, other = written.pop(name), tensor.bfloat16()
        same += int((own == other).sum())
        apart += int((own != other).sum())
        steps = own.view(torch.int16).int() - other.view(torch.int16).int()
        ulps = max(ulps, float(steps.abs()[own != other].max()) if (own != other).any() else 0.0)
    shutil.rmtree(output)
    return {
        "rss_anon_peak": peak[0],
        "equal": same,
        "differ": apart,
        "most_ulps": ulps,
        "unexpected": len(written),
    }


@click.command()
@click.option("--geometry", type=click.Choice(list(GEOMETRIES)), default="1b", show_default=True)
@click.option("--rank", type=int, default=16, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--shard-size", default="1GB", show_default=True)
@click.option("--folder", type=Path, default=Path("build/merge"), show_default=True)
@click.option("--rows", "path", default="build/merge.jsonl", show_default=True, type=Path)
@click.option("--memory", is_flag=True, hidden=True)
def main(
    geometry: str, rank: int, rounds: int, shard_size: str, folder: Path, path: Path, memory: bool
) -> None:
    """Seconds of a merge beside those of its bare arithmetic, and its memory."""
    shape = GEOMETRIES[geometry]
    folder = folder / f"{geometry}-{rank}"
    os.environ["PRESSROOM_HOME"] = str(folder.absolute())
    folder.mkdir(parents=True, exist_ok=True)
    if memory:
        say(json.dumps(memory_and_tensors(folder, shard_size)))
        return
    make(folder, shape, rank)
    opened = source_in(folder).opened(CPU)
    whole, sliced = bare_whole(opened), bare_sliced(opened)
    options, output = Options(shard_size=shard_size, verify=False), folder / "merged"

    def merged() -> None:
        shutil.rmtree(output, ignore_errors=True)
        merge(source_in(folder), output, options)

    times: dict[str, list[tuple[float, float]]] = {"merge": [], "whole": [], "sliced": []}
    for number in range(rounds + 1):
        for name, call in (("merge", merged), ("whole", whole), ("sliced", sliced)):
            took = seconds(call)
            log.info("%s: %.2f s, %.2f s on cores", name, *took)
            if number:  # the first warms up
                times[name].append(took)
    written = sum(p.stat().st_size for p in output.glob("*.safetensors"))
    del whole, sliced
    found, on_cores = (
        {name: statistics.median(took[clock] for took in all_of) for name, all_of in times.items()}
        for clock in (0, 1)
    )
    again = [sys.executable, __file__, "--memory", "--geometry", geometry, "--rank", str(rank)]
    again += ["--shard-size", shard_size, "--folder", str(folder.parent)]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    largest = 4 * max(torch.Size(shape).numel() for shape in opened.shapes.values())
    figures = {
        "geometry": geometry,
        "rank": rank,
        "cores": cores(),
        "bytes_written": written,
        **{f"{name}_seconds": round(value, 3) for name, value in found.items()},
        **{f"{name}_core_seconds": round(value, 3) for name, value in on_cores.items()},
        "merge_gb_per_second": round(written / found["merge"] / 1e9, 3),
        "ratio_to_whole": round(found["whole"] / found["merge"], 3),
        "ratio_to_sliced": round(found["sliced"] / found["merge"], 3),
        "core_ratio_to_whole": round(on_cores["whole"] / on_cores["merge"], 3),
        "core_ratio_to_sliced": round(on_cores["sliced"] / on_cores["merge"], 3),
        "load": os.getloadavg()[0],
        "largest_tensor_fp32": largest,
        **json.loads(done.stdout),
        "extrapolated_70b_seconds": round(
            found["merge"] * SIZES["70b"].num_weights / shape.num_weights
        ),
    }
    append(path, {"bench": "merge", **facts(), **figures})
    say(json.dumps(figures, indent=1))


if __name__ == "__main__":
    entry(main)
