"""The chain as jobs; two jobs on the same nodes, one submitted inside a job, without accounting."""

import json
import re
import sys
from pathlib import Path

import pytest
from slurm_site import Site, job_of
from training import losses

from launch.jobs import jobs_of, starts_of
from launch.plan import CHAIN
from slurm import Slurm

RUN = ("run", "recipe.yaml", "--cluster", "cluster.yaml")


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PRESSROOM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Site(slurm, tmp_path, tiny_model)


@pytest.fixture
def bare(
    slurm_bare: Slurm, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Site:
    monkeypatch.setenv("PRESSROOM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Site(slurm_bare, tmp_path, tiny_model)


def test_the_chain_is_killed_and_only_what_is_missing_runs_again(site: Site) -> None:
    slurm = site.slurm
    shown = site.pressroom(*RUN, "--dry-run")
    assert shown.count("#!/bin/bash") == len(CHAIN)
    assert not (site.home / "runs").exists()
    assert not slurm.run("squeue", "--noheader")

    said = site.pressroom(*RUN)
    jobs = {stage: job_of(said, stage) for stage in CHAIN}
    assert f"job {jobs['prep']}, an array of 2 tasks" in said
    (run,) = site.runs()
    twice = site.pressroom(*RUN)
    assert {stage: job_of(twice, stage) for stage in CHAIN} == jobs
    assert twice.count("queued already") == len(CHAIN)
    assert "another recipe" in site.pressroom(*RUN, "generation.titles=1", code=2)
    assert len(jobs_of(run)) == len(CHAIN)
    assert (run.submission.stat().st_mode & 0o777, run.code.is_dir()) == (0o700, True)
    slurm.wait(jobs["train"], "COMPLETED", seconds=240)
    slurm.wait(jobs["evaluate"], "RUNNING")
    site.pressroom("cancel", "tiny")
    for task in ("0", "1"):
        told = site.pressroom("logs", "tiny", "--stage", "prep", "--task", task)
        assert f"submission/{jobs['prep']}_{task}_0_log.out:" in told
        assert "prep: 0:" in told  # how long it took
    facts = json.loads(run.environment.read_text())
    assert (facts["world_size"], facts["distributed_type"]) == (2, "FSDP")
    assert facts["quantized_base"]
    trained = (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns

    # At once: what was cancelled may still be ending, and does no stage any more.
    run.error.write_text("prep, task 7: of another array\n")
    said = site.pressroom("resume", "tiny")
    assert not run.error.exists()
    again = [line.split()[0] for line in said.splitlines() if " job " in line]
    assert again == ["evaluate", "merge", "generate"]
    slurm.wait(job_of(said, "generate"), "COMPLETED", seconds=240)
    assert {"train", "evaluate", "merge", "generate"} == {
        name for name, stage in run.stages.items() if "finished" in stage
    }
    assert (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns == trained
    assert len(starts_of(run)) == 1
    assert "done already" in site.pressroom(*RUN)
    assert "done" in site.pressroom("runs")


def test_a_stage_that_fails_cancels_what_waits_for_it_and_says_so(site: Site) -> None:
    slurm = site.slurm
    said = site.pressroom(*RUN, "name=fails")
    jobs = {stage: job_of(said, stage) for stage in CHAIN}
    # What the login node has seen is gone when the job starts.
    (site.home / "articles.jsonl").write_text("no article\n")
    slurm.wait(jobs["prep"], "FAILED", seconds=90)
    for stage in CHAIN[1:]:
        slurm.wait(jobs[stage], "CANCELLED", seconds=60)
    told = site.pressroom("runs")
    assert "failed" in told
    assert re.search("prep, task [01]: articles.jsonl: not one good article", told)
    (row,) = json.loads(site.pressroom("runs", "--json"))
    assert (row["state"], row["stage"], row["job"]) == ("failed", "prep", jobs["prep"])
    for task in ("0", "1"):
        assert "Traceback" not in site.pressroom("logs", "fails", "--task", task)


def test_two_jobs_share_nodes_and_one_comes_from_inside_a_job(bare: Site) -> None:
    slurm = bare.slurm
    bare.pressroom("prep", "recipe.yaml", "name=outside")
    bare.pressroom("prep", "recipe.yaml", "name=inside")
    submit = ("submit", "recipe.yaml", "--cluster", "cluster.yaml")
    first = job_of(bare.pressroom(*submit, "name=outside"))
    # A shell inside an allocation whose sizes are not those of the job that it submits.
    entry = f"{sys.executable} -P -c 'from pressroom.cli import entry; entry()'"
    inside = f"{entry} {' '.join(submit)} name=inside"
    shell = ("srun", "--nodes=1", "--ntasks=1", "--cpus-per-task=3", "--mem=100", "bash", "-c")
    second = job_of(bare.type(*shell, inside))
    slurm.until(lambda: slurm.state(second) != "PENDING", second, "started")
    assert slurm.state(first) == "RUNNING"  # on the same nodes, at the same time
    for job in (first, second):
        slurm.wait(job, "COMPLETED", seconds=240)
    told = bare.pressroom("runs")
    for run in bare.runs():
        facts = json.loads(run.environment.read_text())
        assert (facts["world_size"], facts["distributed_type"]) == (2, "FSDP")
        assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
        assert run.path.name in told
    assert told.count("done") == 2
    assert "train 6/6 step" in bare.pressroom("logs", "inside")


def test_a_job_that_gets_nowhere_is_not_queued_for_ever(bare: Site) -> None:
    slurm = bare.slurm
    bare.cluster(fruitless_starts=1)
    bare.recipe(optimizer={"num_steps": 100000}, checkpoint={"every_steps": 100000})
    bare.pressroom("prep", "recipe.yaml")
    job = job_of(bare.pressroom("submit", "recipe.yaml", "--cluster", "cluster.yaml"))
    (run,) = bare.runs()
    bare.trained_beyond(run, 1, job)
    told = bare.pressroom("runs")
    assert "100,000" in told or "100000" in told
    slurm.run("scontrol", "requeue", job)
    slurm.hurry(job)
    slurm.wait(job, "FAILED", seconds=60)
    assert "1 start without a checkpoint newer than step 0" in run.error.read_text()
    assert "failed" in bare.pressroom("runs")


def test_a_job_that_is_preempted_by_term_goes_on(bare: Site) -> None:
    slurm = bare.slurm
    bare.recipe(optimizer={"learning_rate": 1e-2, "num_steps": 40}, checkpoint={"every_steps": 5})
    bare.pressroom("prep", "recipe.yaml")
    job = job_of(bare.pressroom("submit", "recipe.yaml", "--cluster", "cluster.yaml"))
    (run,) = bare.runs()
    bare.trained_beyond(run, 5, job)
    slurm.preempt(job)
    slurm.hurry(job)
    slurm.wait(job, "COMPLETED", seconds=240)
    first, second = starts_of(run)
    assert second.step >= 5 > first.step
    assert sorted(losses(run)) == list(range(1, 41))


def test_a_stage_that_nobody_can_ask_to_save_goes_on(site: Site) -> None:
    """It must not die of the question, and count as failed."""
    slurm = site.slurm
    site.pressroom("prep", "recipe.yaml")
    said = site.pressroom(*RUN, "name=tiny")
    job = job_of(said, "quantize")
    slurm.wait(job, "RUNNING", seconds=60)
    slurm.run("scancel", "--signal=USR2", job)
    assert slurm.wait(job, "COMPLETED", seconds=90) == "COMPLETED"
    assert slurm.restarts(job) == 0
