"""Is the model divided over the ranks as the strategy says? Asked once, before the first step.

The libraries leave parameters whole with a warning, or without: a dtype that does not suit them is
enough. Knows nothing of how a model is divided.
"""

from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from pressroom.console import UserError
from pressroom.planner.setup import Setup
from pressroom.planner.sharding import held

TOLERANCE = 1.1
"""Held over planned: shards are padded, and not all of them are alike."""


class Divided(TrainerCallback):
    """Stops a job whose ranks hold more of the model than was planned.

    Args:
        setup: The plan's.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold what the ranks have against the plan: the model is wrapped by now.

        Raises:
            UserError: It is more; on all ranks at once, for it is the mean over them.
        """
        mine = torch.tensor(float(held_bytes(kwargs["model"])), device=args.device)
        found, planned = float(reduce(mine, "mean")), planned_bytes(self._setup)
        if found > TOLERANCE * planned:
            ranks = self._setup.world_size
            raise UserError(
                f"parallel.strategy: {self._setup.strategy} over {ranks} ranks: each holds "
                f"{found / 2**20:,.1f} MiB of base and adapters, where {planned / 2**20:,.1f} are "
                "planned: the model is not divided as asked. `pressroom doctor` compares the "
                "libraries with those that were tried"
            )


def planned_bytes(setup: Setup) -> float:
    """Bytes of parameters on a rank, wherever it keeps them: base and adapters, without scales."""
    strategy = setup.strategy.removesuffix("_offload")
    parts = held(setup.but(strategy=strategy))
    return parts.codes + parts.linears + parts.other + parts.adapters


def held_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters that are this rank's own: its shards, and what is whole."""
    return sum(t.numel() * t.element_size() for t in map(_own, model.parameters()))


def _own(parameter: Any) -> torch.Tensor:
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3 keeps its shard there
        return parameter.ds_tensor
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
