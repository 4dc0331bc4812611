"""Predicted beside measured: each run is a test of the planner. Writes summary.json.

Knows nothing of how either is made.
"""

import os
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from pressroom.console import UserError, log
from pressroom.files import publish_json
from pressroom.geometry import Geometry
from pressroom.planner.choice import Gpus, option
from pressroom.planner.fits import resolve
from pressroom.planner.here import available_gib, cpu, kind_or_like
from pressroom.planner.memory import GIB, torch_bytes
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.times import Marks
from train.meter import Meter

COMPARED = {
    "load_seconds": "s to load",
    "peak_at_load_gib": "GiB at load",
    "peak_in_step_gib": "GiB in a step",
    "step_seconds": "s a step",
    "save_seconds": "s a checkpoint",
}


def gpus_of_ranks(ranks: PartialState) -> Gpus:
    """The GPUs, or the CPU, that these ranks run on: rank 0's kind stands for all."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.num_processes))
    if not torch.cuda.is_available():
        kind = cpu(available_gib() / per_node)
    else:
        size = torch.cuda.get_device_properties(ranks.device).total_memory
        kind = kind_or_like(torch.cuda.get_device_name(ranks.device), size / GIB)
    return Gpus(kind=kind, nodes=ranks.num_processes // per_node, gpus_per_node=per_node)


def marks(run: RunDir, gpus: Gpus, ranks: PartialState) -> Marks:
    """Where rank 0 marks what it does, this process's start first; the others mark nothing."""
    if not ranks.is_main_process:
        return Marks()
    made = Marks(run.times)
    on_gpus = gpus.count if torch.cuda.is_available() else 0
    cpus = ranks.num_processes * torch.get_num_threads()
    made.start(psutil.Process().create_time(), on_gpus, cpus)
    return made


def settle(recipe: Recipe, geometry: Geometry, gpus: Gpus, *, is_main: bool) -> Recipe:
    """Fill in what is `auto` for the ranks that were started."""
    settled, reasons = resolve(recipe, geometry, gpus)
    for reason in reasons if is_main else ():
        log.info("auto: %s", reason)
    return settled


def predicted(recipe: Recipe, geometry: Geometry, gpus: Gpus) -> dict[str, Any]:
    """The planner's figures; empty for a set-up that it does not know."""
    try:
        planned = option(recipe, geometry, gpus).plan
    except UserError:
        return {}
    return planned.figures() | {
        "peak_at_load_gib": round(torch_bytes(planned.memory.load) / GIB, 3),
        "peak_in_step_gib": round(torch_bytes(planned.memory.step) / GIB, 3),
    }


def write(run: RunDir, foretold: dict[str, Any], meter: Meter, ranks: PartialState) -> None:
    """Write summary.json from the rank with the highest peak; every rank calls it."""
    every = gather_object([meter.measured()])
    if not ranks.is_main_process:
        return
    measured = max(every, key=lambda figures: figures["peak_in_step_gib"])
    publish_json(run.summary, {"predicted": foretold, "measured": measured})
    shown = [
        f"{foretold[name]:.4g} and {measured[name]:.4g} {unit}"
        for name, unit in COMPARED.items()
        if foretold and measured[name]
    ]
    if shown:
        log.info("predicted and measured: %s", ", ".join(shown))
