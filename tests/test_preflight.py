"""The pre-flight: invented facts, and two real ranks of which one is at fault."""

import errno
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import End, run_mortal_ranks, run_ranks
from torch import distributed

from data_prep.prepare import prepare
from pressroom.console import UserError
from pressroom.locks import lock
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import preflight, roll_call
from train.readiness import Facts, Needs, problems
from train.roll_call import RollCall

STACK = {"Pressroom's code": "0a1b", "torch": "2.13.0", "NCCL": "2.29.3"}
WELL = Facts(all_reduce_ms=1.2, free_gib=71.3, total_gib=79.1)
FIRST = replace(WELL, sees_run=True, disk_gib=500.0, stack=STACK)
"""The first rank of a node tells of the node too."""
NEEDS = Needs(run="runs/x", ranks_per_node=4, gpu_gib=60.0, disk_gib=40.0)


def facts(**changed: dict[str, Any]) -> list[Facts | None]:
    """Of three nodes of four ranks; `rank_5={...}` changes one."""
    found: list[Facts | None] = [FIRST if rank % 4 == 0 else WELL for rank in range(12)]
    for name, changes in changed.items():
        rank = int(name.removeprefix("rank_"))
        found[rank] = replace(found[rank] or WELL, **changes)
    return found


def test_nothing_is_wrong_with_ranks_that_are_well() -> None:
    assert problems(facts(), NEEDS) == []


def test_a_rank_that_says_nothing_is_named() -> None:
    found = facts()
    found[7] = None
    assert problems(found, NEEDS) == [(7, "has come, and then said nothing more: it hangs")]


def test_a_failed_all_reduce_is_at_fault_for_those_that_hang_with_it() -> None:
    hung = {f"rank_{rank}": {"hung_seconds": 60.0} for rank in range(12)}
    told = problems(facts(**hung), NEEDS)
    assert [rank for rank, _ in told] == list(range(12))
    assert "the all-reduce did not end within 60 s" in told[0][1]
    hung["rank_5"] = {"all_reduce_error": "NCCL error: unhandled system error"}
    ((rank, what),) = problems(facts(**hung), NEEDS)
    assert (rank, what) == (5, "the all-reduce failed: NCCL error: unhandled system error")


def test_a_part_that_arrives_wrong_everywhere_is_its_senders_fault() -> None:
    wrong = {f"rank_{rank}": {"wrong_parts": [9]} for rank in range(12)}
    ((rank, what),) = problems(facts(**wrong), NEEDS)
    assert rank == 9
    assert "what it sends arrives wrong" in what
    # One that also gets others' parts wrong is at fault itself.
    wrong["rank_2"] = {"wrong_parts": [1, 9]}
    told = problems(facts(**wrong), NEEDS)
    assert [rank for rank, _ in told] == [9, 2]
    assert "gets a wrong sum" in told[1][1]


def test_a_gpu_that_others_use_is_named_with_what_is_free() -> None:
    ((rank, what),) = problems(facts(rank_6={"free_gib": 12.34}), NEEDS)
    assert rank == 6
    assert what.startswith("GPU 2: 12.3 GiB free of 79.1, and the plan needs 60.0: nvidia-smi")
    assert problems(facts(rank_6={"free_gib": 59.1}), NEEDS) == []  # another driver's context
    assert problems(facts(rank_6={"free_gib": 58.9}), NEEDS) != []
    # A plan that fits no empty GPU tells nothing of this one.
    assert problems(facts(rank_6={"free_gib": 12.34}), replace(NEEDS, gpu_gib=None)) == []


def test_a_folder_that_a_node_cannot_use() -> None:
    found = facts(
        rank_0={"write_error": "Read-only file system"},
        rank_4={"sees_run": False, "write_error": "No such file or directory"},
        rank_8={"disk_gib": 39.9},
    )
    assert problems(found, NEEDS) == [
        (0, "cannot write to runs/x: Read-only file system"),
        (4, "does not see runs/x: all nodes must share the file system it is on"),
        (
            8,
            "39.9 GiB free for runs/x, and its checkpoints take 40.0: make room, or lower "
            "checkpoint.keep_last",
        ),
    ]
    new = {f"rank_{rank}": {"sees_run": False} for rank in (0, 4, 8)}
    assert problems(facts(**new), NEEDS) == []  # it will be made


def test_the_odd_node_out_is_named_for_each_version() -> None:
    other = STACK | {"torch": "2.12.0", "Pressroom's code": "ffff"}
    told = problems(facts(rank_0={"stack": other}), NEEDS)
    assert told == [
        (0, "Pressroom's code ffff, and 0a1b on other nodes"),
        (0, "torch 2.12.0, and 2.13.0 on other nodes"),
    ]
    two = facts(rank_4={"stack": {"torch": "2.13.0", "Pressroom's code": "0a1b"}})[:8]
    assert problems(two, NEEDS) == [(4, "NCCL missing, and 2.29.3 on other nodes")]


def test_needs_are_the_planners() -> None:
    foretold = {"fits": True, "peak_at_load_gib": 30.0, "peak_in_step_gib": 61.5}
    foretold["disk_gib"] = {"checkpoints": 4.5, "base": 138.0}
    needs = Needs.of(foretold, "runs/x", 8)
    assert (needs.gpu_gib, needs.disk_gib) == (61.5, 4.5)
    assert Needs.of(foretold | {"fits": False}, "runs/x", 8).gpu_gib is None
    assert Needs.of({}, "runs/x", 8) == Needs(
        run="runs/x", ranks_per_node=8, gpu_gib=None, disk_gib=0.0
    )


def test_ranks_of_a_node_with_the_same_problem_share_a_line(monkeypatch) -> None:
    monkeypatch.setenv("PRESSROOM_HOSTS", "gpu-a,gpu-b,gpu-c")
    told = RollCall(0, 12, 4, object()).message([(4, "hangs"), (7, "hangs"), (8, "hangs")])
    assert told == "pre-flight:\n  gpu-b (ranks 4, 7): hangs\n  gpu-c (rank 8): hangs"
    monkeypatch.setenv("PRESSROOM_HOSTS", "gpu-a,gpu-b")  # of another job
    assert "  node 1 (rank 4): hangs" in RollCall(0, 12, 4, object()).message([(4, "hangs")])
    assert RollCall().message([(0, "hangs")]) == "pre-flight: hangs"


def flight(home: str, fault: str, run: str | None, hosts: str = "gpu-a,gpu-b") -> dict[str, Any]:
    """Fine-tune as one of two nodes, of which the second has a fault."""
    os.chdir(home)
    rank = int(os.environ["RANK"])
    log = {"PRESSROOM_RANK_LOGS": f"{home}/logs"} if fault.endswith(", with files") else {}
    nodes = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "PRESSROOM_HOSTS": hosts}
    os.environ.update({"PRESSROOM_HOME": home, **nodes, **log})
    from pressroom import console
    from train import rank_log, sft

    with Path(f"rank-{rank}.txt").open("wb") as file:
        os.dup2(file.fileno(), 2)
    rank_log.begin()
    console.set_up_logging()
    roll_call.SECONDS = 20.0 if fault in ("", "slow") else 4.0
    roll_call.FAREWELL_SECONDS = 1.0
    preflight.ALL_REDUCE_SECONDS = 3.0
    if rank == 1:
        FAULTS[fault.removesuffix(", with files")]()
    recipe = Recipe.load("recipe.yaml")
    started = time.monotonic()
    finished = sft.fine_tune(recipe, run, str(prepare(recipe)))
    return {"run": str(finished.path), "seconds": time.monotonic() - started}


def _never_comes() -> None:
    time.sleep(60)


def _does_not_connect() -> None:
    distributed.new_group = lambda *a, **k: time.sleep(60)


def _wrong_sum() -> None:
    original = distributed.all_reduce

    def spoilt(numbers: Any, *a: Any, **k: Any) -> None:
        original(numbers, *a, **k)
        numbers[0, 7] += 1

    distributed.all_reduce = spoilt


def _wrong_part() -> None:
    original = distributed.all_reduce

    def spoilt(numbers: Any, *a: Any, **k: Any) -> None:
        numbers[1, 7] += 1
        original(numbers, *a, **k)

    distributed.all_reduce = spoilt


def _all_reduce_raises() -> None:
    def fail(*a: Any, **k: Any) -> None:
        raise distributed.DistBackendError("NCCL error\nmore of it")

    distributed.all_reduce = fail


def _all_reduce_hangs() -> None:
    distributed.all_reduce = lambda *a, **k: time.sleep(60)


def _read_only() -> None:
    original = Path.write_bytes

    def fail(path: Path, content: bytes) -> int:
        if path.name.startswith(".pre-flight"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, content)

    Path.write_bytes = fail  # type: ignore[method-assign]


def _other_code() -> None:
    preflight.code = lambda: "0123456789ab"


def _no_gpus_seen() -> None:
    preflight.blind = lambda: "there are 8 GPUs, and torch sees none"


def _slow() -> None:
    time.sleep(2)


FAULTS = {
    "": lambda: None,
    "slow": _slow,
    "never comes": _never_comes,
    "does not connect": _does_not_connect,
    "wrong sum": _wrong_sum,
    "wrong part": _wrong_part,
    "raises": _all_reduce_raises,
    "hangs": _all_reduce_hangs,
    "read-only": _read_only,
    "other code": _other_code,
    "no GPUs": _no_gpus_seen,
}
TOLD = {
    "never comes": r"gpu-b \(rank 1\): local rank 0 did not come within 4 s",
    "wrong sum": r"gpu-b \(rank 1\): gets a wrong sum from an all-reduce; if it comes again.*",
    "wrong part": r"gpu-b \(rank 1\): what it sends arrives wrong in an all-reduce; .*",
    "raises": r"gpu-b \(rank 1\): the all-reduce failed: NCCL error",
    "read-only": r"gpu-b \(rank 1\): cannot write to \S+runs/tiny/x: Read-only file system",
    "other code": r"gpu-b \(rank 1\): Pressroom's code 0123456789ab, and \w{12} on other nodes",
    "no GPUs": r"gpu-b \(rank 1\): there are 8 GPUs, and torch sees none",
}


@pytest.fixture
def prepared(make_recipe, home: Path) -> Path:
    prepare(make_recipe(optimizer={"num_steps": 1}, tracking={"trackers": []}))
    return home


def new_run(home: Path) -> RunDir:
    run = RunDir(home / "runs" / "tiny" / "x")
    run.begin(Recipe.load("recipe.yaml"))
    return run


def fly(home: Path, fault: str, run: RunDir | None = None, **how: str) -> list[End]:
    path = str(run.path) if run else None
    return run_mortal_ranks("ddp", flight, str(home), fault, path, *how.values())


@pytest.mark.parametrize("fault", TOLD)
def test_the_node_at_fault_is_named_once_and_nothing_is_left(prepared: Path, fault: str) -> None:
    run = new_run(prepared)
    before = sorted(run.path.iterdir())
    ends = fly(prepared, fault, run)
    assert all(end.code != 0 for end in ends)
    (message,) = re.findall(r"UserError: (pre-flight:\n(?:  .*\n)+)", ends[0].value)
    assert re.fullmatch(rf"pre-flight:\n  {TOLD[fault]}\n", message)
    # The other ends by itself without a word, or is ended by the launcher.
    assert ends[1].value is None or "SystemExit: 2" in ends[1].value
    assert run.error.read_text() == message
    assert sorted(run.path.iterdir()) == sorted([*before, run.error])


def test_a_hanging_all_reduce_ends_in_time_with_all_who_hang(prepared: Path) -> None:
    ends = fly(prepared, "hangs")
    assert [end.code != 0 for end in ends] == [True, True]
    hung = r"the all-reduce did not end within 3 s: NCCL_DEBUG.*"
    assert re.search(rf"gpu-a \(rank 0\): {hung}\n  gpu-b \(rank 1\): {hung}\n", ends[0].value)
    assert not (prepared / "runs").exists()


def test_ranks_that_do_not_connect_are_named_and_end(prepared: Path) -> None:
    ends = fly(prepared, "does not connect")
    assert ends[0].code == 2
    assert ends[1].code != 0
    told = (prepared / "rank-0.txt").read_text()
    assert "gpu-b (rank 1): was not connected to all others within 4 s; GLOO_SOCKET" in told
    assert "Traceback" not in told


def test_a_rank_with_a_file_of_its_own_has_the_reason_there(prepared: Path) -> None:
    ends = fly(prepared, "read-only, with files", new_run(prepared))
    assert all(end.code != 0 for end in ends)
    told = (prepared / "logs" / "rank-00001.log").read_text()
    assert "gpu-b (rank 1): cannot write to" in told
    assert "Traceback" not in told


def test_a_refusal_is_no_failure_of_a_run_that_another_launch_trains(prepared: Path) -> None:
    run = new_run(prepared)
    with lock(run.lock, "x"):
        ends = fly(prepared, "read-only", run)
    assert "cannot write to" in ends[0].value
    assert not run.error.exists()


@pytest.mark.parametrize("fault", ["", "slow"])
def test_ranks_that_are_well_say_so_in_one_line_and_train(prepared: Path, fault: str) -> None:
    found = run_ranks("ddp", flight, str(prepared), fault, None)
    assert RunDir(Path(found[0]["run"])).adapter.is_dir()
    told = [(prepared / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    line = r"\d\d:\d\d:\d\d pre-flight: 2 ranks on 2 nodes, all-reduce \d+\.\d ms, \d\.\d s"
    assert len(re.findall(line, told[0])) == 1
    assert "pre-flight" not in told[1]
    assert not list(prepared.rglob(".pre-flight*"))


def test_hosts_say_their_own_names_where_nobody_else_does(prepared: Path) -> None:
    ends = fly(prepared, "wrong sum", None, hosts="")
    assert re.search(rf"{os.uname().nodename} \(rank 1\): gets a wrong sum", ends[0].value)


def test_a_first_node_that_does_not_answer_is_named(monkeypatch) -> None:
    variables = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in {**variables, "SLURMD_NODENAME": "gpu-b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(roll_call, "SECONDS", 1.0)
    wanted = r"gpu-b \(rank 1\): does not reach the job's first node, 127\.0\.0\.1 port 9"
    with pytest.raises(UserError, match=wanted):
        RollCall.of_launcher()


def test_one_rank_alone_is_checked_too(prepared: Path, monkeypatch) -> None:
    from training import train

    run = new_run(prepared)
    monkeypatch.setattr(preflight, "_write_error", lambda folder: "Read-only file system")
    wanted = f"^pre-flight: cannot write to {run.path}: Read-only file system$"
    with pytest.raises(UserError, match=wanted):
        train(run=run)
    assert run.error.is_file()
