"""The cluster: what the machine is, apart from any recipe.

One YAML file a cluster, read by `Cluster.load` with the same strictness as a recipe. Knows
nothing of recipes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from pressroom import strict_yaml
from pressroom.sections import STRICT, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cluster:
    """A partition of a SLURM cluster, as its users see it."""

    partition: str
    """Where jobs are queued."""
    account: str | None = None
    """Who pays; null where the cluster does not ask."""
    gpu: str
    """The kind of GPU, as `pressroom plan` names it: h100, a100-80."""
    nodes: Positive = 1
    """Nodes of a training job."""
    gpus_per_node: Positive
    """GPUs of a node; one rank each."""
    time_limit: Annotated[str, Field(pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")]
    """As sbatch takes it: `12:00:00`, `2-00:00:00`."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on each node first: modules, an environment."""

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> "Cluster":
        """Read a cluster file.

        Raises:
            UserError: With every problem of the file at once.
        """
        return strict_yaml.load(cls, path, overrides)

    @property
    def world_size(self) -> int:
        """Ranks of a training job."""
        return self.nodes * self.gpus_per_node
