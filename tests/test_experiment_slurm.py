"""Experiments as jobs of a real SLURM: arrays, and only what is missing runs again.

The trainer is a stand-in that takes no time (`tests/experiments.py`): what trains under SLURM is
`tests/test_slurm_train.py`'s.
"""

import json
import os
from pathlib import Path

import experiments
import pytest
from slurm_site import Site, job_of

from launch.jobs import jobs_of
from pressroom.experiment import Experiment, find_experiment
from slurm import Slurm


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PRESSROOM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = Site(slurm, tmp_path, tiny_model)
    made.cluster(cpu_jobs={"tasks": 1, "cpus": 1, "memory_gib": 4, "time_limit": "1:00:00"})
    made.recipe(parallel={"strategy": "ddp"}, quantization=None)
    if not os.environ.get("REAL_TRAINER"):
        experiments.install(made.copy_code())
    return made


def found(name: str) -> Experiment:
    experiment = find_experiment(name)
    assert experiment
    return experiment


def jobs(experiment: Experiment) -> dict[str, list[str]]:
    """Point -> the jobs that were submitted to train it."""
    return {
        point.name: [j.job for j in jobs_of(experiment.run(point)) if j.stage == "train"]
        for point in experiment.definition().points
    }


def states(experiment: Experiment) -> dict[str, str]:
    values = json.loads(experiment.results.read_text())
    return {point["point"]: point["state"] for point in values["points"]}


def wait(site: Site, names: list[str]) -> None:
    for name in names:
        site.slurm.wait(name, "COMPLETED", seconds=180)


SCALE = (
    *("scale", "recipe.yaml", "--points", "1,2", "--repeats", "2", "--steps", "4"),
    *("--warmup-steps", "1", "--cluster", "cluster.yaml"),
)
SWEEP = (
    *("sweep", "recipe.yaml", "optimizer.learning_rate=1e-3,2e-3,3e-3,1e-2", "lora.r=8"),
    *("evaluation.every_steps=2", "optimizer.num_steps=8"),
    *("--max-parallel", "2", "--cluster", "one_node.yaml"),
)


def test_scale_and_sweep_run_as_arrays_and_only_what_is_missing_runs_again(site: Site) -> None:
    slurm = site.slurm
    one = json.loads((site.home / "cluster.yaml").read_text()) | {"nodes": 1}
    (site.home / "one_node.yaml").write_text(json.dumps(one))
    slurm.wait(job_of(site.pressroom(*SCALE), "prep"), "COMPLETED")
    site.pressroom(*SWEEP)
    both = [found("tiny-scale"), found("tiny-sweep")]
    begun = [jobs(each) for each in both]
    arrays = [{job.partition("_")[0] for (job,) in each.values()} for each in begun]
    assert [len(each) for each in arrays] == [2, 1]  # an array of each shape
    shapes = {(p.nodes, p.ranks_per_node) for p in both[0].definition().points}
    assert shapes == {(1, 1), (2, 1)}
    killed = [max(each) for each in begun]
    for experiment, name in zip(both, killed, strict=True):
        assert begun[both.index(experiment)][name][0] in site.pressroom(
            "cancel", f"{experiment.title}/{name}"
        )
    assert site.pressroom(*SWEEP).count("queued already") >= 1
    for each, name in zip(begun, killed, strict=True):
        wait(site, [job for other, (job,) in each.items() if other != name])

    for command in (SCALE, SWEEP):
        site.pressroom(*command)
    after = [jobs(each) for each in both]
    for each, name in zip(after, killed, strict=True):
        again = {other for other, submitted in each.items() if len(submitted) > 1}
        assert again == {name}
        wait(site, each[name][-1:])
    shown = [site.pressroom(*command) for command in (SCALE, SWEEP)]
    assert [jobs(each) for each in both] == after  # nothing is left to run
    assert set(states(both[0]).values()) == {"finished"}
    # The last of the sweep, begun when the others were done, is hopeless: ended, and not requeued.
    assert list(states(both[1]).values()) == ["finished"] * 3 + ["given up"]
    assert slurm.restarts(after[1][killed[1]][-1]) == 0
    assert "All 4 finished points trained on the same rows in the same order" in shown[0]
    assert both[1].best.is_file()
    watched = site.pressroom("runs", "tiny-sweep")
    assert watched.count(" done ") == 3
    assert watched.count(" given up ") == 1
    assert "submitit INFO" in site.pressroom("logs", f"{both[1].title}/{killed[1]}")
