"""For tests alone: have accelerate run FSDP2 on CPU ranks over gloo.

`install()` is called in each rank before the trainer is built; it reaches into private state, so
accelerate's and torch's versions are pinned. Sources: accelerate 1.15, `state.py`; torch 2.13,
`ProcessGroupGloo.cpp`.
"""

from typing import Any

from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed import ProcessGroupGloo


def install() -> None:
    """Patch accelerate's state and torch's gloo in this process."""
    _take_fsdp_for_fsdp()
    _give_groups_one_worker()


def _take_fsdp_for_fsdp() -> None:
    """Stock accelerate takes several CPU processes for MULTI_CPU, and trains DDP without a word."""
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


def _give_groups_one_worker() -> None:
    """Stock gloo has two workers a group, and now and then they corrupt the heap.

    Each writes the name of what it has done into one string, and nothing locks it
    (`ProcessGroupGloo::runLoop`). A name of more than 15 characters lies on the heap, and is freed
    twice when they meet: `ALLGATHER_COALESCED` is one, which `DTensor.full_tensor()` asks for.
    """
    original = ProcessGroupGloo.__init__

    def initialise(self: Any, store: Any, rank: int, size: int, timeout: Any) -> None:
        options = ProcessGroupGloo._Options()
        options._timeout, options._threads = timeout, 1
        options._devices = [ProcessGroupGloo.create_default_device()]
        original(self, store, rank, size, options)

    ProcessGroupGloo.__init__ = initialise
