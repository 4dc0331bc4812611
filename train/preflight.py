"""The pre-flight of a job: seconds in which every rank shows that it can train, before it loads.

Ranks answer a roll call, connect, add up numbers, and tell each other what they found. Knows
nothing of what is wrong with what they found, which is `train/readiness.py`'s.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from pressroom.console import log
from pressroom.files import home, sizes
from pressroom.gpus import count_gpus
from pressroom.planner.choice import Gpus
from pressroom.planner.memory import GIB
from pressroom.run_dir import RunDir
from train import rank_log
from train.environment import code, versions
from train.readiness import Facts, Needs, problems
from train.roll_call import RollCall

ALL_REDUCE_SECONDS = 60.0
"""For NCCL to set itself up among all ranks, and to add."""
FACTS_SECONDS = 180.0
"""For the slowest rank to have its facts, the seconds above included."""
NUMBERS = 2**20
"""That are added up: 4 MiB."""
EXIT_SECONDS = 30
"""For a rank to end whose all-reduce hangs."""


def blind() -> str:
    """What is wrong when torch does not see the driver's GPUs; empty when nothing is."""
    if torch.cuda.is_available() or not count_gpus():
        return ""
    return f"there are {count_gpus()} GPUs, and torch sees none: `pressroom doctor` says why"


def check(
    roll_call: RollCall,
    state: PartialState,
    foretold: dict[str, Any],
    gpus: Gpus,
    run_path: str | None,
) -> None:
    """See that every rank can train. Every rank calls it, and where one cannot, all end.

    Args:
        roll_call: Ranks that have met.
        state: Their process group and devices.
        foretold: The planner's figures.
        gpus: Of all ranks.
        run_path: The run directory; None where a new one will be made.

    Raises:
        UserError: Naming all ranks at fault, in the rank that says it.
        SystemExit: In the others.
    """
    start = time.monotonic()
    mine = look(state, run_path)
    told = roll_call.told("facts", asdict(mine), FACTS_SECONDS)
    facts = [said and Facts(**said) for said in told]
    found = problems(facts, Needs.of(foretold, _run_folder(run_path), gpus.gpus_per_node))
    if found:
        if mine.hung_seconds:
            signal.alarm(EXIT_SECONDS)  # a process can hang in NCCL once more when it ends
        roll_call.end(found, told)
    if state.is_main_process:
        if mine.free_gib is not None and foretold and not foretold["fits"]:
            log.warning(
                "the planner says that this will not fit: a GPU needs %(peak_gib).1f GiB, "
                "and has %(gpu_memory_gib)s",
                foretold,
            )
        if state.num_processes > 1:
            log.info("%s", _well(facts, gpus.nodes, time.monotonic() - start))


def _well(facts: list[Facts], nodes: int, seconds: float) -> str:
    """What a pre-flight found that went well."""
    slowest = max(fact.all_reduce_ms for fact in facts)
    told = [
        f"{len(facts)} ranks on {nodes} node{'s' * (nodes > 1)}",
        f"all-reduce {slowest:.1f} ms",
    ]
    fullest = min(facts, key=lambda fact: fact.free_gib or 0.0)
    if fullest.free_gib is not None:
        told.append(f"{fullest.free_gib:.1f} GiB free of {fullest.total_gib:.1f}")
    return f"pre-flight: {', '.join(told)}, {seconds:.1f} s"


def look(state: PartialState, run_path: str | None) -> Facts:
    """What this rank finds."""
    found: dict[str, Any] = {}
    if state.num_processes > 1:
        found = _within(ALL_REDUCE_SECONDS, lambda: add_up(state))
    if state.device.type == "cuda" and "hung_seconds" not in found:
        free, total = torch.cuda.mem_get_info(state.device)
        found |= {"free_gib": free / GIB, "total_gib": total / GIB}
    if state.local_process_index <= 0:
        found |= _node(run_path)
    return Facts(**found)


def add_up(state: PartialState) -> dict[str, Any]:
    """Add up numbers of which each rank has a part, on the ranks' own devices and backend.

    Returns:
        Milliseconds of an all-reduce, and the ranks whose part of the sum is wrong.
    """
    if state.device.type == "cuda":
        torch.cuda.set_device(state.device)  # of this thread
    world, rank = state.num_processes, state.process_index
    # Whole numbers below 2^24: their sums are exact in fp32.
    expected = torch.arange(NUMBERS // world * world, device=state.device).float().view(world, -1)
    mine = torch.zeros_like(expected)
    mine[rank] = expected[rank]
    start = 0.0
    for _ in range(2):  # the first sets NCCL up
        total = mine.clone()
        _finish(state.device)
        start = time.perf_counter()
        distributed.all_reduce(total)
        _finish(state.device)
    milliseconds = 1000 * (time.perf_counter() - start)
    wrong = (total != expected).any(dim=1).nonzero().flatten().tolist()
    return {"all_reduce_ms": milliseconds, "wrong_parts": wrong}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _within(seconds: float, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The facts that a function finds; that it failed, or that it hangs, are facts too."""
    found: dict[str, Any] = {}

    def run() -> None:
        try:
            found.update(function())
        except Exception as error:
            found["all_reduce_error"] = (str(error).strip() or type(error).__name__).splitlines()[0]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return {"hung_seconds": seconds} if thread.is_alive() else found


def _run_folder(run_path: str | None) -> str:
    return run_path or str(home() / "runs")


def _node(run_path: str | None) -> dict[str, Any]:
    """What is the node's: its sight of the run's folder, and what is installed on it."""
    folder = run = Path(_run_folder(run_path)).absolute()
    while not folder.is_dir():
        folder = folder.parent
    held = sum(sizes(RunDir(run).checkpoints).values()) if run_path else 0
    return {
        "sees_run": run.is_dir(),
        "write_error": _write_error(folder),
        "disk_gib": (shutil.disk_usage(folder).free + held) / GIB,
        "stack": {"Pressroom's code": code(), **versions(), **_cuda()},
    }


def _cuda() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {"CUDA": str(torch.version.cuda), "NCCL": nccl}


def _write_error(folder: Path) -> str:
    """Why no file can be written into a folder; empty when one was, and is gone again."""
    probe = folder / f".pre-flight-{rank_log.host_name()}-{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""
