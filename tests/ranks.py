"""Run a function on several ranks of this machine's CPU, as `accelerate launch` would.

One server process imports the stack once and forks every rank from it: a run of two ranks costs
two to three seconds, a fresh launch ten more. The environment of a rank is made by accelerate's
own launcher from the strategy's YAML.
"""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from importlib import resources
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest

TIMEOUT_SECONDS = 180
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks_preload"])


def run_ranks(
    strategy: str, function: Callable[..., Any], *arguments: Any, world_size: int = 2
) -> list[Any]:
    """What `function(*arguments)` returns on each rank.

    Args:
        strategy: Which of `accelerate_configs/` is in force.
        function: At the top of a module, so that a rank finds it.
        arguments: Picklable.
        world_size: How many ranks.

    Raises:
        AssertionError: A rank failed or hung; its traceback is the message.
    """
    ranks = _start(strategy, function, arguments, world_size)
    results, failures = [], []
    for number, (_, receiver) in enumerate(ranks):
        failed, value = True, "died without a word, or hung"
        if receiver.poll(TIMEOUT_SECONDS if not failures else 5):
            with contextlib.suppress(EOFError):
                failed, value = receiver.recv()
        if failed:
            failures.append(f"rank {number}: {value}")
        results.append(value)
    for number, (process, _) in enumerate(ranks):
        if failures:
            process.join(1)  # what has died has its own exit code
            process.kill()
        process.join(30)
        failures += [f"rank {number} ended with {process.exitcode}"] * bool(failures)
    assert not failures, "\n".join(failures)
    return results


class End(NamedTuple):
    """How a rank ended."""

    code: int | None
    """Negative: by that signal."""
    value: Any
    """What its function returned, or its traceback; None when it said nothing."""


def run_mortal_ranks(
    strategy: str, function: Callable[..., Any], *arguments: Any, world_size: int = 2
) -> list[End]:
    """Like `run_ranks`, for ranks that may die: when one has, the others are told to end.

    So does the launcher, by SIGTERM.

    Raises:
        AssertionError: A rank outlived another that failed by more than ten seconds.
    """
    ranks = _start(strategy, function, arguments, world_size)
    living = [process for process, _ in ranks]
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while living and time.monotonic() < deadline:
        connection.wait([p.sentinel for p in living], timeout=1)
        ended = [p for p in living if p.exitcode is not None]
        living = [p for p in living if p.exitcode is None]
        if any(p.exitcode for p in ended):
            deadline = time.monotonic() + 10
            for process in living:
                process.terminate()
    for process in living:
        process.kill()
    assert not living, "a rank does not end"
    return [End(process.exitcode, _said(receiver)) for process, receiver in ranks]


def _said(receiver: Connection) -> Any:
    with contextlib.suppress(EOFError):
        if receiver.poll():
            return receiver.recv()[1]
    return None


def _start(
    strategy: str, function: Callable[..., Any], arguments: Any, world_size: int
) -> list[tuple[Any, Connection]]:
    start_server()
    environment = launcher_environment(strategy, world_size)
    ranks = []
    for rank in range(world_size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        mine = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = CONTEXT.Process(target=_rank, args=(sender, mine, function, arguments))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    return ranks


def start_server() -> None:
    """Start the server that has the stack imported, unless it runs.

    It drops a preload that it cannot import without a word, and in Python 3.11 it does not get
    this process's path.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


def launcher_environment(strategy: str, world_size: int) -> dict[str, str]:
    """The variables that accelerate's launcher gives to ranks for a strategy's YAML."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    config = resources.files("accelerate_configs") / f"{strategy}.yaml"
    command = ["--config_file", str(config), "--num_machines", "1"]
    command += ["--num_processes", str(world_size), "script.py"]
    before = dict(os.environ)
    arguments, defaults, from_config = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(command)
    )
    if arguments.use_deepspeed:
        names = list(defaults.deepspeed_config)
        arguments.deepspeed_fields_from_accelerate_config = ",".join(
            [*names, "mixed_precision"] if from_config else names
        )
        _, made = prepare_deepspeed_cmd_env(arguments)
    else:
        made = prepare_multi_gpu_env(arguments)
    assert dict(os.environ) == before
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        **{name: value for name, value in made.items() if before.get(name) != value},
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


def _rank(
    sender: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: Any
) -> None:
    faulthandler.enable()  # a crash of native code says where it was
    os.environ.update(environment)
    assert "train.sft" in sys.modules, "the server has not imported the stack"
    import cpu_fsdp
    import torch

    torch.set_num_threads(1)
    cpu_fsdp.install()
    if "ACCELERATE_USE_DEEPSPEED" in environment:
        # Without an argument it asks for the GPU, where all runs on a GPU; here that is the CPU.
        enabled = torch.is_autocast_enabled
        torch.is_autocast_enabled = lambda device="cpu": enabled(device)
        backend = importlib.import_module("deepspeed.comm.torch")  # `import as` finds torch itself
        # A minute of compiling; gloo does as well.
        backend.build_shm_op = lambda: None  # type: ignore[attr-defined]
    code = 0
    try:
        sender.send((False, function(*arguments)))
    except BaseException:
        sender.send((True, traceback.format_exc()))
        code = 1
    os._exit(code)  # without waiting for the other ranks' threads
