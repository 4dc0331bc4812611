"""Trainings as jobs of a real SLURM, over two nodes: whatever happens to one changes no loss."""

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from slurm_site import ROOT, Site, fine_tune, job_of
from training import adapter, losses, metrics

from data_prep.prepare import prepare
from launch.jobs import starts_of
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from slurm import Slurm

TINY = (
    *("data.articles=[articles.jsonl]", "data.held_out=0.1", "sequence_length=128", "lora.r=4"),
    *("batch.global_batch_size=4", "batch.micro_batch_size=2"),
    *("optimizer.num_epochs=null", "optimizer.num_steps=6"),
)
ON_CPUS = ("--partition=train", "--gpus-per-node=0", "--cpus-per-task=1")


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PRESSROOM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Site(slurm, tmp_path, tiny_model)


def test_scripts_prepare_train_over_two_nodes_and_merge(site: Site) -> None:
    slurm, script = site.slurm, ROOT / "slurm" / "train_70b.sh"
    tiny = (f"model.base={site.model}", *TINY)
    array = (*ON_CPUS, "--mem=2G", "--array=3-5:2")
    prep = site.sbatch(*array, ROOT / "slurm" / "prep.sh", "llama2_70b", *tiny)
    job = site.sbatch(*ON_CPUS, f"--dependency=afterok:{prep}", script, *tiny)
    killed_while_preparing(slurm, f"{prep}_5")
    slurm.wait(job, "COMPLETED", seconds=240)
    assert [slurm.state(f"{prep}_{task}") for task in (3, 5)] == ["COMPLETED"] * 2
    assert [slurm.restarts(f"{prep}_{task}") for task in (3, 5)] == [0, 1]
    assert (site.home / f"prep-{prep}_3.log").is_file()
    (dataset,) = (site.home / "data").glob("[!.]*")
    assert f"{dataset.name}" in (site.home / f"prep-{prep}_5.log").read_text()
    (run,) = site.runs()
    facts = json.loads(run.environment.read_text())
    assert (facts["world_size"], facts["distributed_type"]) == (2, "FSDP")
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert [start.nodes for start in starts_of(run)] == [("node1", "node2")]
    said = (site.home / f"train_70b-{job}.log").read_text()
    assert "train 6/6 step" in said  # rank 0's words, in the job's own log
    assert "preparing while the nodes wait" not in said
    assert [path.name for path in sorted(run.logs.iterdir())] == [
        "rank-00000.log",
        "rank-00001.log",
    ]
    assert "node2" in run.rank_log(1).read_text()

    merge = site.sbatch(*ON_CPUS, "--mem=2G", ROOT / "slurm" / "merge.sh", "news-70b")
    again = site.sbatch(*ON_CPUS, script, *tiny)
    slurm.wait(merge, "COMPLETED", seconds=90)
    assert list(run.merged.glob("*.safetensors"))
    slurm.wait(again, "COMPLETED", seconds=60)
    assert "trained already" in (site.home / f"train_70b-{again}.log").read_text()
    assert len(site.runs()) == 1


def killed_while_preparing(slurm: Slurm, task: str) -> None:
    """Kill one task of an array when it works, and have it queued again."""
    steps = ("squeue", "--noheader", "--steps", f"--jobs={task}", "--format=%i")
    slurm.until(lambda: ".0" in slurm.run(*steps), task, "at work")
    slurm.run("scontrol", "requeue", task)
    slurm.hurry(task)


def test_gpus_that_are_not_there_are_told_with_their_nodes(site: Site) -> None:
    script = ROOT / "slurm" / "train_70b.sh"
    where = ("--partition=train", "--cpus-per-task=1")
    job = site.sbatch(*where, script, f"model.base={site.model}", *TINY)
    site.slurm.wait(job, "FAILED", seconds=60)
    said = (site.home / f"train_70b-{job}.log").read_text()
    for node in ("node1", "node2"):
        assert f"{node}: SLURM gives 8 GPUs, and this node has no NVIDIA driver" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sh")), ids=lambda p: p.name)
def test_slurm_takes_every_script(site: Site, script: Path) -> None:
    site.type("sbatch", "--test-only", "--partition=train", str(script))
    lines = script.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]  # nobody reads them
    assert lines[0] == "#!/bin/bash"
    assert script.stat().st_mode & 0o100


STEPS = 160


def test_what_happens_to_a_job_changes_no_loss(site: Site) -> None:
    slurm, home = site.slurm, site.home
    long = {"optimizer": {"learning_rate": 1e-2, "num_steps": STEPS}}
    often = {"checkpoint": {"every_steps": 5}, "evaluation": {"every_steps": 40}}
    site.recipe(**long, **often)
    prepare(Recipe.load("recipe.yaml"))
    undisturbed = RunDir(Path(run_ranks("fsdp", fine_tune, str(home), ())[0]))

    clone = site.copy_code()
    site.recipe(**long, **often, name="waits")
    prepare(Recipe.load("recipe.yaml"))
    other = slurm.sbatch("--partition=urgent", "--exclusive", "--nodes=2", "--wrap=sleep 600")
    slurm.wait(other, "RUNNING")
    job = job_of(site.pressroom("submit", "recipe.yaml", "--cluster", "cluster.yaml"))
    (run,) = [run for run in site.runs() if run.path != undisturbed.path]
    # While it waits, everything that it was made from is changed.
    assert slurm.state(job) == "PENDING"
    site.recipe(seed=1, optimizer={"num_steps": 1}, name="waits")
    site.cluster(nodes=1)
    (home / "articles.jsonl").write_text("{}\n")
    for module in ("train/sft.py", "launch/node.py", "pressroom/recipe.py"):
        (clone / module).write_text("raise SystemExit('this was edited')\n")
    slurm.run("scancel", other)

    at, restarts = site.trained_beyond(run, 3, job), 0

    def goes_on(*, saved: bool) -> int:
        """Wait for the next start, and that it has trained beyond where it began; where it is.

        A job that was asked to save loses no step.
        """
        nonlocal restarts
        restarts += 1
        before = run.metrics.stat().st_ino
        slurm.hurry(job)
        assert slurm.restarts(job) == restarts  # queued again once, not twice
        slurm.until(lambda: len(starts_of(run)) == restarts + 1, job, "started again")
        began = starts_of(run)[-1].step
        assert began >= at if saved else began <= at
        # When it trains, it has written anew the rows of the steps that are not done again.
        slurm.until(lambda: run.metrics.stat().st_ino != before, job, "training", 120)
        return site.trained_beyond(run, began + 1, job)

    slurm.preempt(job)
    at = goes_on(saved=True)

    slurm.restart_controller()
    at = site.trained_beyond(run, at + 2, job)
    assert slurm.restarts(job) == restarts

    slurm.run("scontrol", "requeue", job)  # by hand: nobody asks it to save
    at = goes_on(saved=False)

    slurm.preempt(job)
    at = goes_on(saved=True)

    slurm.kill_node("node2")
    slurm.until(lambda: slurm.restarts(job) == restarts + 1, job, "queued again")
    slurm.start_node("node2")
    at = goes_on(saved=False)

    slurm.run("scontrol", "update", f"jobid={job}", "timelimit=1")
    slurm.until(lambda: slurm.restarts(job) == restarts + 1, job, "at its time limit", 120)
    slurm.run("scontrol", "update", f"jobid={job}", "timelimit=60")
    at = goes_on(saved=True)

    slurm.preempt(job)
    at = goes_on(saved=True)
    slurm.wait(job, "COMPLETED", seconds=240)

    assert slurm.restarts(job) == restarts == 6
    assert [start.restart for start in starts_of(run)] == list(range(7))
    facts = json.loads(run.environment.read_text())
    assert (facts["world_size"], facts["distributed_type"]) == (2, "FSDP")
    for column in ("loss", "eval_loss", "learning_rate", "grad_norm"):
        pair = [[r[column] for r in metrics(r_) if column in r] for r_ in (run, undisturbed)]
        assert len(pair[0]) >= 4
        assert pair[0] == pair[1], column
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    ends = [adapter(each) for each in (run, undisturbed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
