"""What a node knows before it trains: its allocation, the other nodes, a clean environment."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from launch import meet, node, process
from launch.allocation import allocation, port_of, share
from launch.command import Node, train_command
from launch.jobs import Start, fruitless, record_start, starts_of
from launch.meet import follow, meeting
from launch.rank_environment import cleaned, rank_environment
from launch.training import job_runs
from pressroom.console import UserError
from pressroom.run_dir import RunDir

TASK = {
    "SLURM_JOB_ID": "712",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[08-09],big1",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NODEID": "1",
    "SLURM_GPUS_ON_NODE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}


def start(step: int, job: str = "7") -> Start:
    return Start(job=job, restart=0, stage="train", nodes=("a", "b"), step=step, started="now")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# The allocation


def test_counts_come_from_the_allocation() -> None:
    here = allocation(TASK)
    assert here.hosts == ("gpu08", "gpu09", "big1")
    assert (here.job, here.restart, here.node_rank, here.host) == ("712", 0, 1, "gpu09")
    assert here.num_gpus == 4
    without = {k: v for k, v in TASK.items() if k != "SLURM_GPUS_ON_NODE"}
    assert allocation(without).num_gpus == 4
    assert allocation(without | {"CUDA_VISIBLE_DEVICES": ""}).num_gpus == 0
    assert allocation(TASK | {"SLURM_RESTART_COUNT": "2"}).restart == 2


def test_what_is_no_task_of_a_job_is_told() -> None:
    with pytest.raises(UserError, match="not a task of a SLURM job"):
        allocation({"SLURM_JOB_ID": "3"})
    with pytest.raises(UserError, match="6 tasks on 3 nodes: must be one a node"):
        allocation(TASK | {"SLURM_STEP_NUM_TASKS": "6"})


def test_jobs_on_a_node_have_ports_of_their_own() -> None:
    pairs = [{port_of(job), port_of(job) + 1} for job in range(5000, 6000)]
    assert len(set.union(*pairs)) == 2000
    assert all(1024 < port < 32768 for pair in pairs for port in pair)
    assert port_of(7, step=0) != port_of(7, step=1)


def test_a_second_node_trains_where_the_first_is(make_recipe) -> None:
    recipe = make_recipe(
        batch={"global_batch_size": 16, "micro_batch_size": 1}, parallel={"strategy": "fsdp"}
    )
    node = Node(num_gpus=4, num_cpus=64, rank=1, count=2, address="gpu08", port=11424)
    text = " ".join(train_command(recipe, RunDir(Path("r")), Path("d"), node))
    assert "--num_machines 2 --num_processes 8 " in text
    assert "--machine_rank 1 --main_process_ip gpu08 --main_process_port 11424" in text
    assert "--num_cpu_threads_per_process 16" in text
    assert "/fsdp.yaml" in text
    # Jobs of one node each may share it: its port is the job's too.
    alone = train_command(
        recipe, RunDir(Path("r")), Path("d"), Node(num_gpus=4, num_cpus=4, port=9)
    )
    assert "--main_process_port 9 " in " ".join(alone)


# The tasks of an array


def task(**variables: object) -> dict[str, str]:
    """The environment of a task, by names without SLURM's prefix."""
    return {f"SLURM_{k}": str(v) for k, v in {"JOB_ID": 42, **variables}.items()}


def array(number: int, first: int, count: int, step: int = 1) -> dict[str, str]:
    names = {"ID": number, "MIN": first, "COUNT": count, "STEP": step}
    return task(ARRAY_JOB_ID=40, **{f"ARRAY_TASK_{k}": v for k, v in names.items()})


@pytest.mark.parametrize(
    ("environment", "place", "name"),
    [
        (array(0, 0, 4), (0, 4), "40_0"),
        (array(3, 0, 4), (3, 4), "40_3"),
        (array(3, 3, 4, 2), (0, 4), "40_3"),  # 3-9:2, as a real SLURM says it
        (array(9, 3, 4, 2), (3, 4), "40_9"),
        (array(7, 7, 1), (0, 1), "40_7"),
        (array(4, 1, 3), (0, 3), "40_4"),  # 1,3,4
        (task(), (0, 1), "42"),
    ],
)
def test_which_of_the_tasks_this_is(
    environment: dict[str, str], place: tuple[int, int], name: str
) -> None:
    here = share(environment | {"SLURM_RESTART_COUNT": "2"})  # which changes nothing
    assert ((here.index, here.count), here.name) == (place, name)
    group = name.partition("_")[0]
    whole = f"--group|job {group}|--task|{place[0]}/{place[1]}"
    assert "|".join(here.options).endswith(whole)


def test_a_task_has_the_cpus_that_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6})
    assert share(task(CPUS_PER_TASK=16)).options[:2] == ["--num-workers", "16"]
    assert share(task()).options[:2] == ["--num-workers", "3"]
    with pytest.raises(UserError, match="not a SLURM job: start it with sbatch"):
        share({})


def test_a_task_of_a_run_does_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, commands = RunDir(tmp_path / "run"), []
    run.submission.mkdir(parents=True)
    names = [f"{job}_0_result.pkl.save_tmp" for job in ("40_1", "40_10", "40_2", "41")]
    for name in names:
        (run.submission / name).touch()
    for variable, value in (array(1, 0, 16) | task(CPUS_PER_TASK=8)).items():
        monkeypatch.setenv(variable, value)
    seen = []

    @contextmanager
    def recorded(*arguments: object) -> Iterator[None]:
        seen.append(arguments[2:])
        yield

    monkeypatch.setattr(node, "recorded", recorded)
    monkeypatch.setattr(node, "_alone", lambda: None)  # it cleans the environment
    monkeypatch.setattr(node, "run_to_end", lambda stage, command: commands.append(command))
    monkeypatch.setattr(node.Keys, "read", lambda run: None)
    node._of_run("prep", str(run.path))
    assert commands[-1][1:4] == ["-m", "data_prep.prepare", str(run.recipe)]
    assert commands[-1][4:] == (["--num-workers", "8", "--group", "job 40", "--task", "1/16"])
    # What another task is about to write is left alone.
    assert sorted(path.name for path in run.submission.iterdir()) == sorted(names[1:])
    node._of_run("merge", str(run.path))
    assert commands[-1][2:] == ["generate.commands", "merge", str(run.path)]
    assert seen == [("prep", 1), ("merge", 1)]


def test_a_task_whose_number_the_array_bears_is_told_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    slurm.says("squeue", "17 PENDING\n14 RUNNING\n16 RUNNING\n")  # as of the array 14
    assert job_runs("14")
    slurm.says("squeue", "17 RUNNING\n14 COMPLETING\n114 RUNNING\n")
    assert not job_runs("14")
    slurm.says("squeue", code=1)
    assert job_runs("14")


# The environment


def test_what_launchers_say_of_ranks_is_taken_out() -> None:
    foreign = {
        **dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR"), "9"),
        **dict.fromkeys(("SLURM_NTASKS", "SBATCH_X", "PMI_RANK", "PMIX_RANK"), "9"),
        **dict.fromkeys(("OMPI_COMM_WORLD_RANK", "ACCELERATE_USE_FSDP", "FSDP_VERSION"), "9"),
        **dict.fromkeys(("SUBMITIT_EXECUTOR", "TORCHELASTIC_RUN_ID", "GROUP_RANK"), "9"),
    }
    kept = {"PATH": "/bin", "SLURM_CONF": "/etc/s", "SLURM_JOB_ID": "7", "WANDB_API_KEY": "x"}
    clean = cleaned(foreign | kept)
    assert clean.keys().isdisjoint(foreign)
    assert kept.items() <= clean.items()
    assert clean["HF_HUB_OFFLINE"] == "1"
    assert cleaned({"HF_HUB_OFFLINE": "0"})["HF_HUB_OFFLINE"] == "0"


def test_ranks_share_the_cpus_of_their_node() -> None:
    here = allocation(TASK)
    node = Node(num_gpus=4, num_cpus=64)
    found = rank_environment({"OMP_NUM_THREADS": "64"}, here, node, RunDir(Path("r")), "/nvme")
    assert found["OMP_NUM_THREADS"] == "16"
    assert found["PRESSROOM_HOSTS"] == "gpu08,gpu09,big1"
    assert found["PRESSROOM_STAGED"] == "/nvme"
    assert found["PRESSROOM_RANK_LOGS"] == "r/logs"


# Starts


def test_starts_without_progress_are_counted(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert starts_of(run) == []
    for step in (0, 5, 5, 5):
        record_start(run, start(step))
    record_start(run, start(5, job="8"))
    with run.starts.open("a") as file:
        file.write('{"job": "7", "st')
    found = starts_of(run)
    assert [each.step for each in found] == [0, 5, 5, 5, 5]
    assert fruitless(found, "7", 5) == 3
    assert fruitless(found, "7", 6) == 0
    assert fruitless(found, "8", 5) == 1


# The nodes meet


def other(port: int, node_rank: int, problems: list[str], found: list) -> threading.Thread:
    hello = {"job": "7", "node_rank": node_rank}

    def go() -> None:
        try:
            found.append(follow("127.0.0.1", port, hello, lambda orders: problems))
        except UserError as error:
            found.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    return thread


def test_all_nodes_get_the_orders_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meet, "BEAT_SECONDS", 0.01)  # signs of life come between
    port, found = free_port(), []
    others = [other(port, rank, [], found) for rank in (2, 1)]
    time.sleep(0.3)  # they come before the first listens, too
    with meeting(port, ["a", "b", "c"], "7") as nodes:
        assert [hello["node_rank"] for hello in nodes.everybody()] == [1, 2]
        time.sleep(0.1)
        nodes.agree({"run": "r"})
    for thread in others:
        thread.join(5)
    assert found == [{"run": "r"}] * 2


def test_a_node_that_does_not_come_is_named() -> None:
    port, found = free_port(), []
    thread = other(port, 2, [], found)
    with (
        meeting(port, ["a", "b", "c"], "7") as nodes,
        pytest.raises(UserError, match=r"^b: not heard"),
    ):
        nodes.everybody(deadline_seconds=1)
    thread.join(5)
    assert isinstance(found[0], UserError)


def test_a_node_that_cannot_follow_stops_all_and_is_named() -> None:
    port, found = free_port(), []
    others = [other(port, 1, ["does not see /work"], found), other(port, 2, [], found)]
    with meeting(port, ["a", "b", "c"], "7") as nodes:
        nodes.everybody()
        with pytest.raises(UserError, match=r"^b: does not see /work$"):
            nodes.agree({"run": "r"})
    for thread in others:
        thread.join(5)
    assert [str(each) for each in found] == ["not started: 127.0.0.1, the first node, says why"] * 2


def test_when_the_first_node_fails_nobody_waits() -> None:
    port, found = free_port(), []
    thread = other(port, 1, [], found)

    def lead() -> None:
        with meeting(port, ["a", "b"], "7") as nodes:
            nodes.everybody()
            raise UserError("wrong recipe")

    with pytest.raises(UserError, match="wrong recipe"):
        lead()
    thread.join(5)
    assert "says why" in str(found[0])


def test_a_silent_first_node_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meet, "SILENCE_SECONDS", 0.2)
    found: list = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        other(deaf.getsockname()[1], 1, [], found).join(5)
    assert "says why" in str(found[0])


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"a: port {port} is taken"), meeting(port, ["a"], "7"):
            pass


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"1\n",
        b'{"job": "8", "node_rank": 1}\n',
        b'{"job": "7", "node_rank": 5}\n',
        b'{"job": "7", "node_rank": "one"}\n',
    ],
)
def test_a_stranger_at_the_port_is_not_a_node(said: bytes) -> None:
    port, found = free_port(), []
    with meeting(port, ["a", "b"], "7") as nodes:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
        thread = other(port, 1, [], found)
        assert [hello["node_rank"] for hello in nodes.everybody(5)] == [1]
        nodes.agree({"run": "r"})
    thread.join(5)
    assert found == [{"run": "r"}]


# The signals


def test_a_stage_that_nobody_can_ask_outlives_the_question() -> None:
    code = """if True:
        import os, signal, subprocess, sys
        from launch import process
        signal.signal(process.ASK, signal.SIG_IGN)
        os.kill(os.getpid(), process.ASK)
        child = "import os, signal, time; os.kill(os.getppid(), signal.SIGUSR2); time.sleep(1)"
        sys.exit(process.run([sys.executable, "-c", child], os.environ).code)
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


def test_who_was_asked_before_its_ranks_started_asks_them() -> None:
    child = """if True:
        import subprocess, sys, time
        listens = "import signal, sys, time;"
        listens += "signal.signal(signal.SIGUSR2, lambda *a: sys.exit(0)); time.sleep(60)"
        sys.exit(subprocess.run([sys.executable, "-c", listens]).returncode)
    """
    start = time.monotonic()
    ended = process.run(
        [sys.executable, "-c", child],
        os.environ,
        always_ask=(process.ASK,),
        asked_before=lambda: True,
    )
    assert ended.code == 0
    assert time.monotonic() - start < 30
