"""What each file of `accelerate_configs/` must say, for somebody may have edited it.

Sharding only: counts and addresses come from the allocation, batch, clipping and precision from
the recipe. Knows nothing of accelerate.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pressroom.console import UserError
from pressroom.yaml_source import Key, Source, dotted

_FSDP = {
    "distributed_type": "FSDP",
    "fsdp_config.fsdp_version": 2,
    "fsdp_config.fsdp_auto_wrap_policy": "NO_WRAP",
    "fsdp_config.fsdp_activation_checkpointing": False,
    "fsdp_config.fsdp_cpu_ram_efficient_loading": False,
}
_ZERO = {
    "distributed_type": "DEEPSPEED",
    "deepspeed_config.deepspeed_multinode_launcher": "standard",
}
_ON_GPU = {
    "deepspeed_config.offload_optimizer_device": "none",
    "deepspeed_config.offload_param_device": "none",
}
SAYS: dict[str, dict[str, Any]] = {
    "single": {"distributed_type": "NO"},
    "ddp": {"distributed_type": "MULTI_GPU"},
    "fsdp": {**_FSDP, "fsdp_config.fsdp_offload_params": False},
    "fsdp_offload": {**_FSDP, "fsdp_config.fsdp_offload_params": True},
    "zero2": {**_ZERO, **_ON_GPU, "deepspeed_config.zero_stage": 2},
    "zero3": {**_ZERO, **_ON_GPU, "deepspeed_config.zero_stage": 3},
    "zero3_offload": {
        **_ZERO,
        **dict.fromkeys(_ON_GPU, "cpu"),
        "deepspeed_config.zero_stage": 3,
    },
}
"""Strategy, or `single` for one rank -> dotted key -> value. Beside these, precision is "no"."""
_ELSEWHERE = {
    **dict.fromkeys(
        (
            *("num_processes", "num_machines", "machine_rank"),
            *("main_process_ip", "main_process_port", "rdzv_backend"),
        ),
        "comes from the launcher",
    ),
    "gradient_accumulation_steps": "follows from the recipe's batch",
    "gradient_clipping": "is the recipe's optimizer.max_grad_norm",
    "deepspeed_config_file": "would take the place of all that stands here",
}


def problems(path: Path, name: str) -> list[str]:
    """Every line by which a file is no longer the one of its strategy.

    Args:
        path: The file.
        name: The strategy, or `single`.
    """
    source = Source(str(path))
    try:
        tree = source.read(path, ())
    except UserError as error:
        return [str(error)]
    found = dict(_leaves(tree, ()))
    told = [f"{where}: {message}" for where, message in source.problems]
    for dotted_key, wanted in {**SAYS[name], "mixed_precision": "no"}.items():
        key = tuple(dotted_key.split("."))
        if found.get(key) != wanted:
            shown = json.dumps(found[key]) if key in found else "missing"
            must = f"must be {json.dumps(wanted)} for {name}, not {shown}"
            told.append(f"{source.where(key)}: {dotted_key}: {must}")
    for key in found:
        if key[-1] in _ELSEWHERE:
            told.append(f"{source.where(key)}: {dotted(key)}: {_ELSEWHERE[key[-1]]}: leave it out")
    return told


def _leaves(tree: dict[str, Any], before: Key) -> Iterator[tuple[Key, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*before, name))
        else:
            yield (*before, name), value
