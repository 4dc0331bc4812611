"""What sbatch gets, held against files that are read in review: `make docs` writes them anew."""

import os
import re
import sys
from pathlib import Path

import pytest

from launch.plan import CHAIN, request
from pressroom.base_model import geometry_of
from pressroom.cluster import Cluster
from pressroom.planner.choice import option
from pressroom.planner.fits import resolve
from pressroom.planner.here import gpus_of
from pressroom.planner.table import table
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

GOLDEN = Path(__file__).parent / "golden"
RUN = RunDir(Path("/shared/me/runs/news-70b/2026-11-22T10-00-00"))
CLUSTERS = {
    "small": """
        partition: gpu
        gpu: a100-80
        gpus_per_node: 4
        time_limit: "12:00:00"
    """,
    "whole": """
        partition: h100
        account: news
        qos: high
        constraint: ib&nvme
        gpu: h100
        gpu_type: h100_sxm
        nodes: 4
        gpus_per_node: 8
        cpus_per_node: 96
        memory_gib: 1000
        time_limit: "2-00:00:00"
        cpu_jobs: {partition: cpu, tasks: 4, cpus: 32, memory_gib: 128, time_limit: "4:00:00"}
        setup: [module load cuda/12.8]
        container: apptainer exec --nv /shared/me/pressroom.sif
        python: python3
        environment: {NCCL_SOCKET_IFNAME: ib0, NOTE: "it's $HOME"}
        node_local: /scratch/$SLURM_JOB_ID
        signal_seconds: 300
    """,
    "cpus": """
        partition: debug
        nodes: 2
        gpus_per_node: 0
        cpus_per_node: 4
        memory_gib: 8
        time_limit: "1:00:00"
    """,
}


def cluster(name: str, folder: Path) -> Cluster:
    path = folder / "cluster.yaml"
    path.write_text(CLUSTERS[name].replace("\n        ", "\n"))
    return Cluster.load(path)


def texts(there: Cluster) -> str:
    """All sbatch texts of a cluster, with what differs from machine to machine taken out."""
    signal = there.signal_seconds or 120
    found = [request(stage, RUN, Path("/shared/me"), there, signal).text for stage in CHAIN]
    return "\n".join(found).replace(sys.executable, "PYTHON")


@pytest.mark.parametrize("name", CLUSTERS)
def test_sbatch_texts_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    path, found = GOLDEN / f"sbatch_{name}.txt", texts(cluster(name, tmp_path))
    if os.environ.get("WRITE_DOCS"):
        path.write_text(found)
    assert found == path.read_text()


def asked_for(script: str) -> tuple[int, int]:
    """Nodes, and GPUs of each, that a script asks for."""
    text = (Path(__file__).parents[1] / "slurm" / f"{script}.sh").read_text()
    nodes, gpus = (
        re.search(rf"^#SBATCH.*--{option}=(\d+)", text, re.MULTILINE)
        for option in ("nodes", "gpus-per-node")
    )
    assert nodes
    assert gpus
    return int(nodes[1]), int(gpus[1])


@pytest.mark.parametrize("recipe", ["llama2_7b", "llama2_13b", "llama2_70b"])
def test_plans_are_those_of_the_files(recipe: str, tmp_path: Path) -> None:
    loaded, gpus = Recipe.load(recipe), gpus_of(cluster("whole", tmp_path))
    nodes, gpus_per_node = asked_for(recipe.replace("llama2", "train"))
    gpus = gpus.but(nodes=nodes, gpus_per_node=gpus_per_node)
    settled, _ = resolve(loaded, geometry_of(loaded.model), gpus)
    path = GOLDEN / f"plan_{recipe}.txt"
    found = table(recipe, option(settled, geometry_of(loaded.model), gpus).plan) + "\n"
    if os.environ.get("WRITE_DOCS"):
        path.write_text(found)
    assert found == path.read_text()


def test_a_stage_waits_for_others(tmp_path: Path) -> None:
    asked = request("merge", RUN, Path("/shared/me"), cluster("small", tmp_path), 120)
    assert "dependency" not in asked.after(()).text
    assert "#SBATCH --dependency=afterok:7:8\n" in asked.after(("7", "8")).text
