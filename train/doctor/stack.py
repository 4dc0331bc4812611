"""What torch, bitsandbytes and deepspeed can do here, found by trying them.

Each is imported when it is tried, and what it writes on the way is caught: a library that is
broken is a fact with a reason, never a traceback. Knows nothing of what the facts mean.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    capability: tuple[int, int]
    memory_gib: float
    free_gib: float
    """What nobody holds; the doctor's own context takes half a GiB."""


@dataclass(kw_only=True)
class Stack:
    """The libraries that need a GPU, a driver or a native library. Filled while they are tried."""

    torch: str | None = None
    torch_cuda: str | None = None
    """The CUDA version that torch was built for; None: a CPU build."""
    torch_archs: tuple[str, ...] = ()
    """What its kernels were compiled for: sm_80, compute_90."""
    gpus: tuple[Gpu, ...] = ()
    nccl: bool = False
    peers: bool = True
    """Whether each GPU reads each other's memory."""
    fetches: bool = False
    """Whether importing bitsandbytes would fetch code from the hub and run it."""
    bitsandbytes: str | None = None
    """The native library that it loaded; None: none."""
    nf4: dict[str, float] = field(default_factory=dict)
    """Device -> the largest error of NF4 there and back, in its block's largest weight."""
    deepspeed: str | None = None
    broken: dict[str, str] = field(default_factory=dict)
    """What was tried in vain -> the first line of the reason."""


def probe_stack(*, deepspeed: bool, may_fetch: bool) -> Stack:
    """Try torch, bitsandbytes and, where it is asked for, deepspeed.

    bitsandbytes' CPU library takes a kernel from the hub when the `kernels` package is installed
    and the CPU has AVX512-BF16. There it is not tried: the doctor runs no remote code.

    Args:
        deepspeed: Whether it is tried too; it takes seconds to import.
        may_fetch: Whether the CPU is such a one and the hub's offline switch is not set.

    Source: bitsandbytes 0.50.2, backends/cpu/ops.py.
    """
    stack = Stack()
    with _trying(stack, "torch"):
        _probe_torch(stack)
    if stack.torch:
        with _trying(stack, "cuda") as told:
            _probe_gpus(stack)
        if told and not stack.gpus:
            stack.broken.setdefault("cuda", _first_line(str(told[0].message)))
        # With a GPU the CUDA library is loaded, which knows nothing of the CPU's abilities.
        stack.fetches = may_fetch and not stack.gpus and find_spec("kernels") is not None
        if not stack.fetches:
            with _trying(stack, "bitsandbytes"):
                _probe_bitsandbytes(stack)
    if deepspeed:
        with _trying(stack, "deepspeed"):
            stack.deepspeed = import_module("deepspeed").__version__
    return stack


@contextlib.contextmanager
def _trying(stack: Stack, what: str) -> Iterator[list[Any]]:
    """Note why a block failed; yield the warnings that it gave."""
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(record=True) as told,
        ):
            warnings.simplefilter("always", UserWarning)
            yield told
    except Exception as error:  # whatever a broken library raises
        stack.broken[what] = _first_line(str(error)) or type(error).__name__
    finally:
        logging.disable(logging.NOTSET)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _probe_torch(stack: Stack) -> None:
    import torch

    stack.torch_cuda = torch.version.cuda
    stack.nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    stack.torch = torch.__version__


def _probe_gpus(stack: Stack) -> None:
    import torch

    if not torch.cuda.is_available():
        return
    stack.torch_archs = tuple(torch.cuda.get_arch_list())
    count = torch.cuda.device_count()
    gpus = []
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(
            Gpu(
                name=properties.name,
                capability=(properties.major, properties.minor),
                memory_gib=round(total / GIB, 1),
                free_gib=round(free / GIB, 1),
            )
        )
    stack.gpus = tuple(gpus)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    stack.peers = all(torch.cuda.can_device_access_peer(a, b) for a, b in pairs)


def _probe_bitsandbytes(stack: Stack) -> None:
    import bitsandbytes.cextension as native

    if isinstance(native.lib, native.ErrorHandlerMockBNBNativeLibrary):
        if stack.gpus:
            raise RuntimeError(native.lib.error_msg)
    else:
        stack.bitsandbytes = Path(native.lib._lib._name).name
    for device in ("cpu", *(f"cuda:{index}" for index in range(len(stack.gpus)))):
        with _trying(stack, f"NF4 on {device}"):
            stack.nf4[device] = _nf4_error(device)


def _nf4_error(device: str) -> float:
    """Largest error of 64 blocks of 64 weights, quantized and back, in a block's largest weight."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    codes, state = quantize_4bit(weights, blocksize=64, quant_type="nf4")
    error = (dequantize_4bit(codes, state) - weights).abs() / weights.abs().amax(1, keepdim=True)
    return round(float(error.max()), 4)
