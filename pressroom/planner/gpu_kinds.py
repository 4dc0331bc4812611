"""GPUs as data: what the planner knows of a kind, and how people and drivers name it.

Peak rates, from the vendor's datasheets: dense work, never with sparsity; links in one direction,
where datasheets print both together. Knows nothing of models, and asks no driver.
"""

import difflib
import re
from dataclasses import dataclass

from pressroom.console import UserError


@dataclass(frozen=True)
class GpuKind:
    """One kind of GPU, in GiB (2^30 bytes) and GB (1e9 bytes)."""

    name: str
    memory_gib: float
    """What torch calls total_memory, of the newest drivers: a little under the label."""
    tflops: float
    """bf16 with fp32 accumulation, dense; fp16 where there is no bf16."""
    gb_per_second: float
    """Of its own memory."""
    link_gb_per_second: float
    """To the other GPUs of its node together: half of NVLink's total, or else PCIe."""
    host_gb_per_second: float
    """To and from the host's memory, over PCIe."""
    network_gb_per_second: float
    """Its share of what the vendor's own box sends to other nodes."""
    has_bf16: bool
    torch_names: tuple[str, ...]
    """How torch.cuda.get_device_name and nvidia-smi call it, less the brand in front."""
    source: str


_SHARED = 100 / 8 / 8
"""GB/s, assumed where the vendor sells no box of its own: a card of 100 Gb/s for eight GPUs."""

# fmt: off
_TABLE = (
    #        name       GiB    TFLOP/s memory  link  host  network
    GpuKind("t4",       14.5,     65,    320,   16,   16, _SHARED, False, ("T4",),
            "NVIDIA T4 datasheet"),
    GpuKind("v100-16",  15.7,    125,    900,  150,   16,    6.25, False, ("V100-SXM2-16GB",),
            "NVIDIA V100 datasheet, SXM2; DGX-1 white paper: 4 x 100 Gb/s"),
    GpuKind("v100-32",  31.7,    125,    900,  150,   16,    6.25, False, ("V100-SXM2-32GB",),
            "NVIDIA V100 datasheet, SXM2; DGX-1 white paper: 4 x 100 Gb/s"),
    GpuKind("a10",      22.0,    125,    600,   32,   32, _SHARED, True, ("A10",),
            "NVIDIA A10 datasheet"),
    GpuKind("l4",       22.0,    121,    300,   32,   32, _SHARED, True, ("L4",),
            "NVIDIA L4 datasheet, which prints rates with sparsity"),
    GpuKind("l40s",     44.4,    362,    864,   32,   32, _SHARED, True, ("L40S",),
            "NVIDIA L40S datasheet"),
    GpuKind("rtx3090",  23.5,     71,    936,   32,   32, _SHARED, True, ("RTX 3090",),
            "NVIDIA GA102 white paper, appendix A; without an NVLink bridge"),
    GpuKind("rtx4090",  23.5,    165,   1008,   32,   32, _SHARED, True, ("RTX 4090",),
            "NVIDIA Ada white paper, appendix A"),
    GpuKind("a100-40",  39.4,    312,   1555,  300,   32,      25, True, ("A100-SXM4-40GB",),
            "NVIDIA A100 datasheet, SXM; DGX A100: 8 x 200 Gb/s"),
    GpuKind("a100-80",  79.1,    312,   2039,  300,   32,      25, True, ("A100-SXM4-80GB",),
            "NVIDIA A100 datasheet, SXM; DGX A100: 8 x 200 Gb/s"),
    GpuKind("h100",     79.1,    989,   3350,  450,   64,      50, True, ("H100 80GB HBM3",),
            "NVIDIA H100 datasheet, SXM; DGX H100: 8 x 400 Gb/s"),
    GpuKind("h200",    139.7,    989,   4800,  450,   64,      50, True, ("H200",),
            "NVIDIA H200 datasheet, SXM; DGX H200: 8 x 400 Gb/s"),
    GpuKind("b200",    178.3,   2250,   8000,  900,   64,      50, True, ("B200",),
            "NVIDIA DGX B200 datasheet, an eighth; its hosts have PCIe 5; 8 x 400 Gb/s"),
)
# fmt: on

KINDS = {kind.name: kind for kind in _TABLE}

_MEMORY_TOLERANCE = 0.1
"""nvidia-smi says up to 3 % more than torch, and a card without ECC 8 %; a slice of one is half."""


def kind_of(name: str) -> GpuKind:
    """A kind by its name, in either case.

    Raises:
        UserError: Nobody has described it.
    """
    wanted = name.strip().lower()
    if wanted in KINDS:
        return KINDS[wanted]
    close = [kind for kind in KINDS if kind.startswith(wanted + "-")]
    close = close or difflib.get_close_matches(wanted, KINDS, n=1, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"{name}: no such GPU kind ({', '.join(KINDS)}){hint}")


def kind_for(device_name: str, memory_gib: float) -> GpuKind | None:
    """The kind of a GPU that is there; None for one that is not in the table.

    The name must end as the table says: an "A10G", an "H100 PCIe", an "RTX 3090 Ti" and a slice
    of a GPU ("... MIG 1g.10gb") are other cards with other rates.

    Args:
        device_name: What torch or nvidia-smi calls it.
        memory_gib: What either says it has.
    """
    for kind in _TABLE:
        named = any(f" {device_name}".endswith(f" {name}") for name in kind.torch_names)
        if named and abs(memory_gib / kind.memory_gib - 1) <= _MEMORY_TOLERANCE:
            return kind
    return None


def parse_gpus(text: str) -> tuple[int, int, GpuKind]:
    """Nodes, GPUs of a node and their kind, as people write them.

    >>> nodes, gpus_per_node, kind = parse_gpus("2x8xH100")
    >>> nodes, gpus_per_node, kind.name
    (2, 8, 'h100')
    >>> parse_gpus("8xA100-80")[:2], parse_gpus("t4")[:2]
    ((1, 8), (1, 1))

    Raises:
        UserError: The text is something else, a number is zero, or the kind is unknown.
    """
    found = re.fullmatch(r"(?:(?:(\d{1,5})x)?(\d{1,5})x)?([a-z][a-z0-9-]*)", text.strip().lower())
    form = "KIND, COUNTxKIND or NODESxCOUNTxKIND, as in 8xh100 and 2x8xh100"
    if found is None:
        raise UserError(f"{text!r}: not GPUs: must be {form}")
    nodes, gpus_per_node = int(found[1] or 1), int(found[2] or 1)
    if not nodes or not gpus_per_node:
        raise UserError(f"{text!r}: no GPUs: nodes and GPUs of a node are at least 1")
    return nodes, gpus_per_node, kind_of(found[3])
