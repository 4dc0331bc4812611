"""For tests alone: have accelerate run FSDP2 on CPU ranks over gloo.

Stock accelerate takes several CPU processes for MULTI_CPU, and trains DDP without a word though
the configuration says FSDP. `install()` is called in each rank before the trainer is built; it
reaches into private state, so accelerate's version is pinned. Source: accelerate 1.15, `state.py`.
"""

from typing import Any

from accelerate import state
from accelerate.utils import DistributedType


def install() -> None:
    """Patch accelerate's state in this process."""
    original = state.AcceleratorState.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = plugin

    state.AcceleratorState.__init__ = initialise
