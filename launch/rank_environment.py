"""The environment of ranks on a node: what the shell, the cluster and SLURM left in it, and ours.

A pure function. What others' launchers say of ranks is taken out, for libraries believe it. Knows
nothing of what the ranks do.
"""

import re
from collections.abc import Mapping

from launch.allocation import Allocation
from launch.command import Node
from pressroom.run_dir import RunDir

_FOREIGN = re.compile(
    r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|PMI|PMIX|PMI2|OMPI|PRTE|MV2|MPIR?|I_MPI|ACCELERATE|FSDP|"
    r"SUBMITIT|TORCHELASTIC|GROUP|ROLE)_.*"
    r"|(LOCAL_|NODE_|GROUP_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
_DEFAULTS = {
    "HF_HUB_OFFLINE": "1",  # nodes are, and all was checked before
    "HF_DATASETS_OFFLINE": "1",
    "NCCL_DEBUG": "WARN",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Unless the shell or the cluster's file says otherwise."""
_KEPT = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME")
"""For SLURM's commands, and for logs that can be matched with SLURM's."""


def cleaned(before: Mapping[str, str]) -> dict[str, str]:
    """An environment without what launchers say of ranks, for work that nobody divides."""
    kept = {k: v for k, v in before.items() if k in _KEPT or not _FOREIGN.fullmatch(k)}
    return {**_DEFAULTS, **kept, "PYTHONSAFEPATH": "1"}


def rank_environment(
    before: Mapping[str, str], allocation: Allocation, node: Node, run: RunDir, staged: str = ""
) -> dict[str, str]:
    """The variables of the launcher, which its ranks inherit.

    Args:
        before: Of this process.
        allocation: The job.
        node: This node among those that train.
        run: The run directory.
        staged: Where this node has its own copy of the quantized base, if it has one.
    """
    ours = {
        "OMP_NUM_THREADS": str(node.num_threads),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a collective that hangs ends its rank
        "PRESSROOM_RANK_LOGS": str(run.logs),
        "PRESSROOM_HOSTS": ",".join(allocation.hosts),
    }
    if staged:
        ours["PRESSROOM_STAGED"] = staged
    if not node.num_gpus:
        ours["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed warns that it found none
    return cleaned(before) | ours
