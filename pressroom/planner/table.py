"""A plan as text: a table of memory with its bar, time, cost, and whether it fits.

Knows nothing of how the figures are made.
"""

from pressroom.console import human_seconds
from pressroom.planner.gpu_kinds import KINDS
from pressroom.planner.memory import GIB, GpuMemory
from pressroom.planner.plan import Plan

BAR = 64
"""Characters that stand for one GPU's memory."""
LETTERS = {
    "4-bit weights": "W",
    "scales": "S",
    "16-bit weights": "W",
    "embeddings, norms, head": "E",
    "adapters": "A",
    "gradients": "G",
    "optimizer states": "O",
    "gathered layers": "L",
    "layer being divided": "L",
    "gathered embeddings, head": "H",
    "communication buffers": "B",
    "weights dequantized once": "M",
    "activations kept": "K",
    "recomputed layer": "R",
    "gradients of activations": "V",
    "dequantized weights": "D",
    "weights being quantized": "Q",
    "logits": "T",
    "loss, in chunks": "T",
    "CUDA context, NCCL": "C",
    "reserve": "-",
}
"""What a row is in the bar, in the order of the table."""


def table(name: str, planned: Plan) -> str:
    """Everything about a plan that fits a screen."""
    return "\n".join([*_head(name, planned), "", *_memory(planned), "", *_rest(planned)])


def _head(name: str, planned: Plan) -> list[str]:
    setup, peak = planned.setup, planned.peak_gib
    nodes = f"{setup.nodes} nodes of " if setup.nodes > 1 else ""
    room = setup.gpu.memory_gib
    verdict = "fits" if planned.fits_well else "fits, with less than 5 % to spare"
    if not planned.fits:
        verdict = f"does not fit: {peak - room:.1f} GiB too much"
    known = [] if setup.gpu.name in KINDS else [f"{setup.gpu.name}: {setup.gpu.source}"]
    return [
        f"{name} on {nodes}{setup.gpus_per_node} x {setup.gpu.name}: {verdict}",
        f"{setup.strategy}, {setup.memory.activation_checkpointing} checkpointing, "
        f"{'plain layers' if setup.save == 'plain' else f'lean layers that keep {setup.save}'}; "
        f"{setup.global_batch_size} rows of {setup.sequence_length:,} tokens a step = "
        f"{setup.micro_batch_size} micro x {setup.accumulation} accumulation x "
        f"{setup.world_size} {'rank' if setup.world_size == 1 else 'ranks'}",
        *known,
    ]


def _memory(planned: Plan) -> list[str]:
    memory = planned.memory
    labels = [name for name in LETTERS if _seen(memory, name)]
    lines = [f"{'GiB of one GPU':33}{'at load':>9}{'in a step':>11}"]
    for label in labels:
        cells = [_cell(rows.get(label, 0)) for rows in (memory.load, memory.step)]
        lines.append(f"  {LETTERS[label]} {label:29}{cells[0]:>9}{cells[1]:>11}")
    totals = [sum(rows.values()) / GIB for rows in (memory.load, memory.step)]
    peak = f"   at its peak, in the {'loss' if memory.moment == 'loss' else 'backward pass'}"
    lines.append(f"{'    peak':33}{totals[0]:>9.2f}{totals[1]:>11.2f}{peak}")
    room = planned.setup.gpu.memory_gib
    lines.append(f"{'    ' + planned.setup.gpu.name + ' has':33}{room:>9.2f}{room:>11.2f}")
    lines.append(f"    load |{_bar(memory.load, room)}")
    lines.append(f"    step |{_bar(memory.step, room)}")
    return lines


def _seen(memory: GpuMemory, label: str) -> bool:
    return memory.load.get(label, 0) + memory.step.get(label, 0) > 0


def _cell(size: float) -> str:
    if not size:
        return "-"
    return f"{size / GIB:.2f}" if size >= 0.005 * GIB else "<0.01"


def _bar(rows: dict[str, float], room_gib: float) -> str:
    """Each letter is a 64th of the GPU's memory; what is too much stands behind the wall."""
    text, so_far = "", 0.0
    for label, letter in LETTERS.items():
        so_far += rows.get(label, 0)
        text += letter * (round(so_far / GIB / room_gib * BAR) - len(text))
    inside, outside = text[:BAR], text[BAR:]
    return f"{inside:.<{BAR}}|{outside[: BAR // 4]}{'...' if len(outside) > BAR // 4 else ''}"


def _rest(planned: Plan) -> list[str]:
    setup, step, disk = planned.setup, planned.step, planned.disk
    parts = sorted(vars(step).items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {seconds / step.total:.0%}" for name, seconds in parts[:5])
    run = "give optimizer.num_steps, or prepare the data first: the rows of a pass are not known"
    if planned.run_seconds is not None and planned.num_steps is not None:
        run = (
            f"{planned.num_steps:,} steps in {_clock(planned.run_seconds)}, "
            f"{planned.gpu_hours:,.1f} GPU-hours, loading and saving included"
        )
    return [
        f"speed        {planned.tokens_per_second_per_gpu:,.0f} tokens/s/GPU, "
        f"MFU {planned.mfu:.0%} (of 4P + 6sdL FLOPs a token)",
        f"step         {step.total:.2f} s: {shown}",
        f"run          {run}",
        f"load, save   {planned.load_seconds:.0f} s, {planned.save_seconds:.0f} s; tell a job "
        f"{planned.lead_seconds:.0f} s before its end",
        f"host memory  {planned.host_bytes / GIB:,.0f} GiB a node"
        + (", with what is offloaded" if setup.offloads else ""),
        f"disk         {disk.total / GIB:,.1f} GiB: "
        + ", ".join(f"{n} {size / GIB:,.1f}" for n, size in vars(disk).items() if size),
    ]


def _clock(seconds: float) -> str:
    """A time that nobody takes for another: 64 s are not an hour."""
    return f"{human_seconds(seconds)} {'hours' if seconds >= 3600 else 'minutes'}"
