"""What SLURM is asked for: recipe + cluster -> the sbatch text of each stage. Pure functions.

The text is submitit's; what stands in it is decided here. Knows nothing of how it is submitted.
"""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from launch.command import Stage
from pressroom.cluster import Cluster, minutes
from pressroom.run_dir import RunDir

CHAIN: tuple[Stage, ...] = ("prep", "quantize", "train", "evaluate", "merge", "generate")
"""All stages, in order: each waits for the one before it."""
_ON_CPUS = ("prep", "merge")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A stage's job, as it is asked for."""

    stage: Stage
    parameters: dict[str, Any]
    """By submitit's names."""
    python: str
    """The shell words that start Python in a task."""
    folder: Path
    """The run's submission folder."""
    tasks: int = 1
    """That share the stage's work, as an array; 1: no array."""

    @property
    def text(self) -> str:
        """What sbatch is given."""
        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        many = self.tasks if self.tasks > 1 else None
        return _make_sbatch_string(
            command=command, folder=self.folder, map_count=many, **self.parameters
        )

    def after(self, jobs: tuple[str, ...]) -> "Request":
        """The same, to start when other jobs have ended well."""
        if not jobs:
            return self
        dependency = {"dependency": "afterok:" + ":".join(jobs)}
        return replace(self, parameters=self.parameters | dependency)


def request(
    stage: Stage, run: RunDir, home: Path, cluster: Cluster, signal_seconds: int
) -> Request:
    """Ask for a stage's job.

    Args:
        stage: Training takes all nodes and GPUs, other work on the model one GPU, the rest none.
        run: The run directory, absolute.
        home: Where `data/` and `runs/` lie, absolute.
        cluster: What there is.
        signal_seconds: How long before its end a training is asked to save.
    """
    common = {
        "job_name": f"{run.path.parent.name}-{stage}",
        "account": cluster.account,
        "qos": cluster.qos,
        "exclude": cluster.exclude,
        "ntasks_per_node": 1,
        "setup": _setup(run, home, cluster),
        "stderr_to_stdout": True,
        "wckey": None,  # else submitit names itself
        "additional_parameters": {
            "requeue": True,
            "chdir": str(home),
            "signal": f"USR2@{signal_seconds}",  # whatever submitit's environment says
            "kill-on-invalid-dep": "yes",
            **({"reservation": cluster.reservation} if cluster.reservation else {}),
        },
    }
    needed = common | (_on_cpus(cluster) if stage in _ON_CPUS else _on_gpus(stage, cluster))
    tasks = cluster.cpu_jobs.tasks if stage == "prep" else 1
    needed["array_parallelism"] = tasks  # else submitit lets 256 of them run at a time
    return Request(
        stage=stage,
        parameters={
            name: value for name, value in needed.items() if value is not None or name == "wckey"
        },
        python=_python(cluster),
        folder=run.submission,
        tasks=tasks,
    )


def _on_cpus(cluster: Cluster) -> dict[str, Any]:
    jobs = cluster.cpu_jobs
    return {
        "partition": jobs.partition or cluster.partition,
        "constraint": None if jobs.partition else cluster.constraint,
        "nodes": 1,
        "cpus_per_task": jobs.cpus,
        "mem": f"{jobs.memory_gib}G",
        "time": minutes(jobs.time_limit),
        "srun_args": _srun(jobs.cpus),
    }


def _on_gpus(stage: Stage, cluster: Cluster) -> dict[str, Any]:
    is_training = stage == "train"
    gpus = cluster.gpus_per_node if is_training else min(cluster.gpus_per_node, 1)
    share = 1 if is_training else max(cluster.gpus_per_node, 1)
    cpus = cluster.cpus_per_node and max(cluster.cpus_per_node // share, 1)
    memory = f"{cluster.memory_gib // share}G" if cluster.memory_gib else "0"
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    return {
        "partition": cluster.partition,
        "constraint": cluster.constraint,
        "nodes": cluster.nodes if is_training else 1,
        "gpus_per_node": f"{kind}{gpus}" if gpus else None,
        "cpus_per_task": cpus,
        # Of one GPU's job nobody knows the share of the host's memory: the cluster's default.
        "mem": memory if is_training or cluster.memory_gib else None,
        "time": minutes(cluster.time_limit),
        "srun_args": _srun(cpus),
    }


def _srun(cpus: int | None) -> list[str]:
    # srun takes none of sbatch's CPUs for a task by itself; one failed node ends the others.
    return ["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])]


def _setup(run: RunDir, home: Path, cluster: Cluster) -> list[str]:
    variables = {"PYTHONSAFEPATH": "1", "PRESSROOM_HOME": str(home)} | cluster.environment
    if cluster.node_local:
        variables["PRESSROOM_NODE_LOCAL"] = cluster.node_local  # filled in on each node
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    # A job that goes on behind a module that is missing runs with whatever is there.
    setup = [
        f"{line} || {{ echo setup failed: {shlex.quote(line)} >&2; exit 1; }}"
        for line in cluster.setup
    ]
    # The code that was submitted comes before any that is installed.
    code = shlex.quote(str(run.code))
    return [*setup, *exports, f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"']


def _python(cluster: Cluster) -> str:
    words = [*shlex.split(cluster.container or ""), cluster.python or sys.executable]
    # A signal may come before Python listens: it must not end the task.
    return f'bash -c \'trap "" USR2; exec "$@"\' - {shlex.join(words)}'
