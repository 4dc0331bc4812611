"""Where a step's time goes: a profile's kernels, by what they do."""

import re
from typing import Any

CLASSES = {
    "attention": r"flash|fmha|attention|sdpa|softmax_warp|flex",
    "dequantize": r"dequant|kDequant|gemm_4bit|gemv_4bit",
    "quantize": r"quantize",
    "matmul": r"gemm|matmul|cutlass|::mm|addmm|bmm|linear|sm\d+_xmma|nvjet",
    "loss": r"cross_entropy|log_softmax|nll",
    "optimizer": r"adam|foreach|multi_tensor|lpnorm",
    "communication": r"nccl|all_reduce|all_gather|reduce_scatter",
    "copy": r"memcpy|memset|copy_|::to\b|_to_copy|cat\b|CatArray",
    "elementwise": r"elementwise|vectorized|triton_|::mul|::add|::silu|reduce|rsqrt|pow|mean",
}
"""The first whose pattern a kernel's name has."""


def class_of(name: str) -> str:
    """The class of a kernel.

    >>> class_of("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>"), class_of("nvjet_hsh")
    ('dequantize', 'matmul')
    """
    found = (kind for kind, text in CLASSES.items() if re.search(text, name, re.IGNORECASE))
    return next(found, "other")


def shares(profile: Any, *, cuda: bool) -> dict[str, float]:
    """Share of the profiled time by class, largest first."""
    times: dict[str, float] = {}
    for event in profile.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        if cuda and event.self_cpu_time_total:  # an operator; its kernels are events of their own
            continue
        times[class_of(event.key)] = times.get(class_of(event.key), 0.0) + spent
    total = sum(times.values()) or 1.0
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return {name: round(spent / total, 4) for name, spent in ordered if spent}
