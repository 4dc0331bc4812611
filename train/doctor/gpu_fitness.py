"""What torch, its GPUs and bitsandbytes can do here, and what to do where they cannot.

Pure functions of a machine's facts. Knows nothing of recipes.
"""

import re
from collections import Counter
from collections.abc import Sequence

from train.doctor.fitness import Finding, Findings
from train.doctor.machine import Machine

NF4_TOLERANCE = 0.153
"""Half of NF4's widest gap, from -1 to -0.696. Source: Dettmers et al., arXiv:2305.14314, E."""


def _torch(machine: Machine) -> Findings:
    stack = machine.stack
    if "torch" in stack.broken:
        yield Finding(
            "problem", "torch", stack.broken["torch"], "install it anew: pip install -e ."
        )
    else:
        build = f"built for CUDA {stack.torch_cuda}" if stack.torch_cuda else "a CPU build"
        yield Finding("ok", "torch", f"{stack.torch}, {build}")


def _driver(machine: Machine) -> Findings:
    driver = machine.driver
    if driver and driver.error and "No devices" not in driver.error:
        do = "first of all `nvidia-smi` must list the GPUs; after an update of the driver, reboot"
        yield Finding("problem", "driver", driver.error, do)
    elif driver and driver.gpus:
        yield Finding("ok", "driver", f"{driver.version}, runs CUDA up to {driver.cuda}")


def _sight(machine: Machine) -> Findings:
    """Whether driver, launcher and torch see the same GPUs."""
    stack, driver = machine.stack, machine.driver
    listed, counted = len(driver.gpus) if driver else 0, machine.counted_gpus
    if not stack.torch or (stack.gpus and len(stack.gpus) == counted):
        return
    shown = "" if machine.visible is None else f" (CUDA_VISIBLE_DEVICES={machine.visible})"
    if stack.gpus:
        what = f"`pressroom train` counts {counted}{shown}, torch sees {len(stack.gpus)}"
        do = f"export CUDA_VISIBLE_DEVICES={','.join(map(str, range(len(stack.gpus))))}"
        yield Finding("problem", "GPU", what, do)
    elif not listed and not counted:
        do = "enough for a model as small as the demo's; a larger one needs an NVIDIA GPU"
        yield Finding("note", "GPU", "none: training runs on the CPU", do)
    elif not counted:
        what = f"all {listed} are hidden{shown}: training runs on the CPU"
        yield Finding("note", "GPU", what, "unset CUDA_VISIBLE_DEVICES")
    elif listed and not stack.torch_cuda:
        what = f"torch {stack.torch} is a CPU build, and the driver lists {listed} GPUs"
        cuda = f"CUDA {driver.cuda} or older" if driver and driver.cuda else "the driver's CUDA"
        do = f"pip uninstall torch, then install a build for {cuda} as pytorch.org tells"
        yield Finding("problem", "GPU", what, do)
    elif driver and _is_older(driver.cuda, stack.torch_cuda):
        what = f"the driver runs CUDA {driver.cuda}, torch is built for {stack.torch_cuda}"
        do = f"update the driver, or install a torch built for CUDA {driver.cuda} or older"
        yield Finding("problem", "GPU", what, do)
    else:
        reason = stack.broken.get("cuda", "CUDA finds none")
        do = "look for a wrong CUDA_VISIBLE_DEVICES, a container started without GPUs, another job"
        yield Finding(
            "problem", "GPU", f"{counted} are there{shown}, torch sees none: {reason}", do
        )


def _gpus(machine: Machine) -> Findings:
    gpus = machine.stack.gpus
    for gpu, count in Counter((g.name, g.capability, g.memory_gib) for g in gpus).items():
        name, capability, memory = gpu
        bf16 = "bf16" if capability >= (8, 0) else "no bf16"
        what = f"{count} x {name}, {memory:.0f} GiB, compute capability "
        what += "{}.{}, ".format(*capability) + bf16
        if compiled_for(machine.stack.torch_archs, capability):
            yield Finding("ok", "GPU", what)
        else:
            archs = " ".join(machine.stack.torch_archs)
            do = f"torch {machine.stack.torch} has kernels for {archs}: install an older CUDA build"
            yield Finding("problem", "GPU", f"{what}; torch has no kernels for it", do)
    for index, one in enumerate(gpus):
        held = one.memory_gib - one.free_gib
        if held > max(2.0, 0.05 * one.memory_gib):
            what = f"GPU {index}: {held:.0f} of {one.memory_gib:.0f} GiB are held already"
            yield Finding("note", "GPU", what, "nvidia-smi names the processes that hold them")
    if any("MIG" in g.name for g in gpus):
        what = "a MIG slice: a process sees one of them, and NCCL joins none"
        yield Finding("note", "GPU", what, "train on one, with parallel.strategy: ddp")


def compiled_for(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether kernels compiled for some architectures run on a GPU.

    A cubin runs on its own major version from its minor on, PTX on all that are newer.

    >>> [compiled_for(["sm_75", "sm_80"], cc) for cc in ((7, 0), (7, 5), (8, 6), (9, 0))]
    [False, True, True, False]
    """
    mine = 10 * capability[0] + capability[1]
    known = [re.match(r"(sm|compute)_(\d+)", arch) for arch in archs]
    numbers = [(m[1], int(m[2])) for m in known if m]
    return not numbers or any(
        n <= mine and (kind == "compute" or n // 10 == capability[0]) for kind, n in numbers
    )


def _several_gpus(machine: Machine) -> Findings:
    stack = machine.stack
    if len(stack.gpus) < 2:
        return
    if not stack.nccl:
        what = "this torch has none, and GPUs exchange gradients through it"
        yield Finding("problem", "NCCL", what, "install torch's CUDA build for Linux")
    if not stack.peers:
        what = "not each GPU reads each other's memory: they exchange through the host, slower"
        yield Finding("note", "NCCL", what, "`nvidia-smi topo -m` shows how they are joined")
    if len({(g.name, g.memory_gib) for g in stack.gpus}) > 1:
        what = "several kinds: the slowest sets the pace, the smallest the memory"
        yield Finding("note", "GPU", what, "choose those of one kind by CUDA_VISIBLE_DEVICES")


def _bitsandbytes(machine: Machine) -> Findings:
    stack, subject = machine.stack, "bitsandbytes"
    if not stack.torch:
        return
    if stack.fetches:
        what = "importing it fetches code from the hub and runs it: `kernels` is installed"
        yield Finding("problem", subject, what, "pip uninstall kernels, or set HF_HUB_OFFLINE=1")
        return
    if subject in stack.broken:
        do = (
            f"unset BNB_CUDA_VERSION, which is {machine.bnb_cuda}"
            if machine.bnb_cuda
            else "`python -m bitsandbytes` lists the CUDA versions that it has: install a torch "
            "built for one of them, or set BNB_CUDA_VERSION to one of the same major version"
        )
        yield Finding("problem", subject, stack.broken[subject], do)
        return
    if machine.bnb_cuda and stack.gpus:
        what = f"BNB_CUDA_VERSION={machine.bnb_cuda} chooses its library, not torch's CUDA"
        yield Finding("note", subject, what, "unset BNB_CUDA_VERSION if that is not on purpose")
    if not stack.bitsandbytes:
        what = "no native library: it runs, slower"
        yield Finding("note", subject, what, "pip install --force-reinstall bitsandbytes")
    failed = {k.removeprefix("NF4 on "): v for k, v in stack.broken.items() if k[:3] == "NF4"}
    failed |= {
        d: f"errors of {e:.2f} blocks" for d, e in stack.nf4.items() if not e <= NF4_TOLERANCE
    }
    for device, reason in failed.items():
        what = f"{stack.bitsandbytes}: NF4 fails on {device}: {reason}"
        yield Finding("problem", subject, what, "`python -m bitsandbytes` tells more")
    if stack.bitsandbytes and not failed:
        what = f"{stack.bitsandbytes}; NF4 there and back on {', '.join(stack.nf4)}"
        yield Finding("ok", subject, what)


def _is_older(driver: str, build: str | None) -> bool:
    """Whether a driver's CUDA is of an older major version than a build's: within one, all run."""
    return bool(driver and build) and int(driver.split(".")[0]) < int(str(build).split(".")[0])


RULES = (_torch, _driver, _sight, _gpus, _several_gpus, _bitsandbytes)
