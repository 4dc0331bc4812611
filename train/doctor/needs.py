"""What a recipe needs of a machine besides: GPUs, precision, deepspeed, its inputs, room.

Pure functions of a machine's facts, a recipe, and what of its inputs is there. Knows nothing of
how training starts.
"""

from pressroom import gpus
from pressroom.geometry import nf4_bytes
from pressroom.recipe import Recipe
from train.doctor.fitness import Finding, Findings
from train.doctor.inputs import Inputs
from train.doctor.machine import Folder, Machine
from train.doctor.stack import GIB


def _gpus(machine: Machine, recipe: Recipe, inputs: Inputs) -> Findings:
    count, batch = len(machine.stack.gpus), recipe.batch
    if not count:
        for need in gpus.needs_gpu(recipe):
            key, _, what = need.partition(": ")
            what, _, do = what.partition(": ")
            yield Finding("problem", key, f"{what}, and there is none", do)
        return
    ranks = gpus.most_ranks(batch, count)
    what = batch.arithmetic(ranks, recipe.sequence_length)
    if ranks < count:
        do = f"choose batch.global_batch_size as a multiple of {count} micro-batches"
        yield Finding("note", "batch", f"uses {ranks} of {count} GPUs: {what}", do)
    else:
        yield Finding("ok", "batch", what)


def _precision(machine: Machine, recipe: Recipe, inputs: Inputs) -> Findings:
    without = [gpu for gpu in machine.stack.gpus if gpu.capability < (8, 0)]
    if not without or recipe.memory.precision != "bf16":
        return
    do = ["memory.precision=fp16"]
    if recipe.quantization:
        do += ["quantization.compute_dtype=float16", "quantization.storage_dtype=float16"]
    if recipe.parallel.strategy.startswith("fsdp"):
        do.insert(0, "parallel.strategy=ddp")  # fp16 is refused under fsdp
    what = f"bf16, which a {without[0].name} does not have"
    yield Finding("problem", "memory.precision", what, " ".join(do))


def _deepspeed(machine: Machine, recipe: Recipe, inputs: Inputs) -> Findings:
    strategy, stack = recipe.parallel.strategy, machine.stack
    if not strategy.startswith("zero"):
        return
    if not stack.deepspeed:
        reason = stack.broken.get("deepspeed", "not tried")
        yield Finding("problem", "deepspeed", f"{strategy} needs it: {reason}", "install deepspeed")
        return
    # Offloaded, Adam runs in C++ that is built at the first step. Nothing needs nvcc or CUDA_HOME.
    # Source: deepspeed 0.19.8, ops/op_builder/cpu/cpu_adam.py.
    if strategy == "zero3_offload" and machine.build_lacks:
        what = f"builds its Adam on this machine, without {', '.join(machine.build_lacks)}"
        do = "install it; a virtual environment's ninja is found once the environment is activated"
        yield Finding("problem", "deepspeed", what, do)
    else:
        yield Finding("ok", "deepspeed", stack.deepspeed)


def _inputs(machine: Machine, recipe: Recipe, inputs: Inputs) -> Findings:
    for message in inputs.wrong:
        key, _, what = message.partition(": ")
        yield Finding("problem", key, what, f"put it there, or give {key}=...")
    for name, refusal in inputs.absent.items():
        is_model = name == recipe.model.base
        subject = "model.base" if is_model else "data.articles"
        download = f"`pressroom download {name if is_model else 'RECIPE'}`"
        if machine.offline:
            what = f"{name} is not in the cache, and HF_HUB_OFFLINE is set"
            do = f"{download} where there is a network, or give a folder"
            yield Finding("problem", subject, what, do)
        elif refusal:
            do = "accept its licence on the hub with that token's account"
            if not inputs.token:
                do = "set HF_TOKEN, and for a gated one accept its licence on the hub"
            do = do if "answer" not in refusal else f"{download} where there is a network"
            yield Finding("problem", subject, f"{name}: {refusal}", do)
        else:
            what = f"{name} is not in the cache yet; the hub gives it"
            yield Finding("note", subject, what, f"{download} brings it before a job waits for it")
    if not inputs.absent and not inputs.wrong:
        yield Finding("ok", "inputs", "model and articles are here")


def _room(machine: Machine, recipe: Recipe, inputs: Inputs) -> Findings:
    """Disk space: adapters with two moments in fp32, one more while it is written; the merge."""
    geometry = inputs.geometry
    if geometry is None:
        if recipe.model.base in inputs.absent:
            what = "not known before the model's config.json is here"
            yield Finding("note", "room", what, f"`pressroom download {recipe.model.base}`")
        return
    adapter = 4 * geometry.num_lora_weights(recipe.lora.r)
    weights = 2 * geometry.num_weights
    wanted: list[tuple[Folder, int, str]] = [
        (machine.home, 3 * adapter * (recipe.checkpoint.most_kept + 1) + adapter, "checkpoints"),
        (machine.home, weights, "the merged model"),
    ]
    if recipe.model.base in inputs.absent:
        wanted.append((machine.hub_cache, weights, "the download"))
    for disk in dict.fromkeys(folder.disk for folder, _, _ in wanted):
        here = [(folder, size, what) for folder, size, what in wanted if folder.disk == disk]
        total, free = sum(size for _, size, _ in here) / GIB, here[0][0].free_gib
        parts = ", ".join(f"{what} {size / GIB:.1f}" for _, size, what in here)
        what = f"takes up to {total:.1f} of {free:.1f} GiB in {here[0][0].path}: {parts}"
        do = "make room, keep fewer checkpoints, or set PRESSROOM_HOME or HF_HOME to another disk"
        yield Finding("ok", "room", what) if total <= free else Finding("problem", "room", what, do)


def _memory(machine: Machine, recipe: Recipe, inputs: Inputs) -> Findings:
    """Host memory: the base where it is loaded or kept there, and the merge in fp32."""
    geometry, count = inputs.geometry, len(machine.stack.gpus)
    if geometry is None:
        return
    size = 2 * geometry.num_weights
    if recipe.quantization:
        codes = nf4_bytes(
            geometry.num_linear_weights, double_quant=recipe.quantization.double_quant
        )
        size = codes + 2 * geometry.num_other_weights
    # On the host: without a GPU, where it is offloaded, and where ZeRO-3's first rank reads what
    # is not quantized, for all. NF4 codes go to each rank's GPU as they are read.
    strategy = recipe.parallel.strategy
    read_first = strategy == "zero3" and recipe.quantization is None
    on_host = not count or strategy.endswith("_offload") or read_first
    if on_host and size / GIB > machine.memory_gib:
        what = f"the base takes {size / GIB:.0f} GiB on the host"
        what += f", and {machine.memory_gib:.0f} are free"
        fsdp = ", or parallel.strategy=fsdp, which loads on the GPUs"
        do = "another machine" + (fsdp if strategy.startswith("zero3") else "")
        yield Finding("problem", "memory", what, do)
    merge = 4 * geometry.num_weights / GIB
    if merge > machine.memory_gib:
        what = f"merging takes {merge:.0f} GiB, of which {machine.memory_gib:.0f} are free"
        yield Finding("note", "memory", what, "`pressroom merge RUN` on a host with more")


RULES = (_gpus, _precision, _deepspeed, _inputs, _room, _memory)
