"""What SLURM says is read as it says it; recorded from a slurmctld 22.05 with two nodes."""

import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, queue_line

from launch import queue
from launch.queue import JobState
from pressroom.console import UserError

SAID = Path(__file__).parent / "slurm_said"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster without accounting and without jobs."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def test_a_real_queue() -> None:
    jobs = queue.parse_queue((SAID / "squeue.txt").read_text())
    assert sorted(jobs, key=int) == [str(n) for n in range(1, 14)]
    assert jobs["1"] == JobState(
        state="RUNNING", nodes="node[1-2]", start=1795343759, end=1795347359, restarts=1
    )
    assert jobs["6"] == JobState(state="PENDING", reason="DependencyNeverSatisfied")
    assert jobs["7"].start == 1795347363
    assert jobs["10"] == JobState(state="PENDING", reason="job requeued in held state", restarts=1)
    assert jobs["11"].reason == "ReqNodeNotAvail, UnavailableNodes:node2"
    assert jobs["12"].reason.endswith("for jobs in higher priority partitions")
    assert jobs["13"].state == "TIMEOUT"
    alive = {job for job, state in jobs.items() if state.alive}
    assert alive == {"1", "5", "6", "7", "8", "10", "11", "12"}
    assert {job for job, state in jobs.items() if state.waits} == alive - {"1"}
    assert [job for job, state in jobs.items() if state.never_starts] == ["6"]


def test_real_accounts() -> None:
    jobs = queue.parse_accounts((SAID / "sacct.txt").read_text())
    assert jobs["9"] == JobState(state="CANCELLED")  # "CANCELLED by 0", on no node
    assert jobs["13"] == JobState(state="TIMEOUT", nodes="node1")
    assert jobs["1"].alive
    assert len(jobs) == 13


def test_an_array_is_one_job() -> None:
    jobs = queue.parse_queue((SAID / "squeue_arrays.txt").read_text())
    assert sorted(jobs, key=int) == [str(n) for n in range(20, 29)]
    start, end = 1795354242, 1795357842
    # What is most alive of its tasks counts, and what became of the others is said.
    assert jobs["20"] == JobState(
        state="RUNNING",
        nodes="node2",
        start=start,
        end=end,
        tasks="1 completed, 1 failed, 1 pending, 2 running",
    )
    assert (jobs["21"].state, jobs["21"].tasks) == ("RUNNING", "2 running")
    assert jobs["22"] == JobState(state="PENDING", reason="JobHeldUser", tasks="4 pending")
    assert (jobs["23"].state, jobs["23"].alive) == ("COMPLETED", False)
    # When all are over, the worst.
    assert (jobs["24"].state, jobs["24"].reason) == ("FAILED", "NonZeroExitCode")
    assert jobs["24"].tasks == "1 completed, 1 failed"
    assert jobs["25"].never_starts
    assert (jobs["26"].state, jobs["26"].tasks) == ("RUNNING", "1 pending, 1 running")
    assert jobs["27"].state == "CANCELLED"
    assert (jobs["28"].state, jobs["28"].tasks) == ("COMPLETED", "")


def test_accounts_of_arrays() -> None:
    jobs = queue.parse_accounts((SAID / "sacct_arrays.txt").read_text())
    whole = {job: state for job, state in jobs.items() if "_" not in job}
    assert sorted(whole, key=int) == [str(n) for n in range(20, 29)]
    assert [jobs[f"20_{n}"].state for n in range(2)] == ["COMPLETED", "FAILED"]
    assert (jobs["23"].state, jobs["24"].state) == ("COMPLETED", "FAILED")
    assert jobs["24"].tasks == "1 completed, 1 failed"
    assert jobs["27"] == JobState(state="CANCELLED")  # 27_[0-1]
    assert jobs["20"].alive
    assert jobs["22"].waits


def test_an_array_on_several_nodes_names_them_once() -> None:
    text = queue_line(7, "FAILED") + queue_line(7, "PENDING")
    assert queue.parse_queue(text)["7"].state == "PENDING"
    text += queue_line(7, "COMPLETING", nodes="node3")
    assert queue.parse_queue(text)["7"].state == "COMPLETING"
    text += "".join(queue_line(7, "RUNNING", nodes=f"node{n}") for n in (2, 1, 2))
    jobs = queue.parse_queue(text)
    assert (jobs["7"].state, jobs["7"].nodes) == ("RUNNING", "node2,node1")
    good, told, bad = (queue_line(8, s) for s in ("COMPLETED", "CANCELLED", "TIMEOUT"))
    assert queue.parse_queue(good + told + bad)["8"].state == "TIMEOUT"
    assert queue.parse_queue(good + told + good)["8"].state == "CANCELLED"


@pytest.mark.parametrize(
    "text", ["", "\n", "CLUSTER: big\n", "squeue: warning\n", "|||\n", "7||\n"]
)
def test_lines_without_a_job_are_none(text: str) -> None:
    assert queue.parse_queue(text) == {}
    assert queue.parse_accounts(text) == {}


@pytest.mark.parametrize(
    ("state", "alive", "waits"),
    [
        ("PENDING", True, True),
        ("REQUEUED", True, True),
        ("REQUEUE_HOLD", True, True),
        ("A_STATE_OF_TOMORROW", True, True),
        ("RUNNING", True, False),
        ("COMPLETING", True, False),
        ("CONFIGURING", True, False),
        ("SUSPENDED", True, False),
        ("PREEMPTED", False, False),
        ("NODE_FAIL", False, False),
        ("OUT_OF_MEMORY", False, False),
        ("TIMEOUT", False, False),
    ],
)
def test_who_is_alive(state: str, alive: bool, waits: bool) -> None:
    job = JobState(state=state, nodes="" if waits else "node1")
    assert (job.alive, job.waits) == (alive, waits)


def test_jobs_that_squeue_forgot_are_asked_of_sacct(slurm: FakeSlurm) -> None:
    slurm.says("squeue", queue_line(812, "RUNNING", nodes="node1") + queue_line(7, "PENDING"))
    slurm.says("sacct", "811|FAILED|node1\n813|RUNNING|node1\n")
    found = queue.states(["813", "811", "812", "811", "900"])
    # 7 is not ours; 813 runs by the accounts alone; 900 nobody knows.
    assert {job: state.state for job, state in found.items()} == {
        "812": "RUNNING",
        "811": "FAILED",
    }
    (asked,) = slurm.calls("squeue")
    assert "--jobs=811,812,813,900" in asked
    assert "--array" in asked.split()
    (asked,) = slurm.calls("sacct")
    assert "--jobs=811,813,900" in asked


def test_without_accounting_a_forgotten_job_is_absent(slurm: FakeSlurm) -> None:
    slurm.says("squeue", queue_line(812, "RUNNING", nodes="node1"))
    assert list(queue.states(["811", "812"])) == ["812"]


def test_squeue_refuses_a_single_job_that_is_over(slurm: FakeSlurm) -> None:
    says = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
    slurm.does("squeue", f'case "$*" in *--jobs*) {says};; esac')
    assert queue.states(["811"]) == {}
    assert "--user=" in slurm.calls("squeue")[1]


def test_nothing_is_asked_without_jobs(slurm: FakeSlurm) -> None:
    assert queue.states([]) == {}
    assert slurm.calls("squeue") == []


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not queue.is_here()
    assert queue.states(["811"]) == {}
    with pytest.raises(UserError, match="scancel: not on this machine"):
        queue.cancel(["811"])


def test_a_controller_that_is_down_is_told(slurm: FakeSlurm) -> None:
    slurm.says("squeue", err="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    with pytest.raises(UserError, match="squeue: slurm_load_jobs error: Unable to contact"):
        queue.states(["811"])
    slurm.says("squeue", code=3)
    with pytest.raises(UserError, match="squeue: ended with 3"):
        queue.states(["811"])


@pytest.mark.parametrize("command", ["squeue", "sacct", "scancel"])
def test_no_command_is_waited_for_without_end(
    slurm: FakeSlurm,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slurm.does(command, "sleep 60")
    monkeypatch.setattr(queue, "SECONDS", 0.5)
    start = time.monotonic()
    if command == "sacct":  # no state hangs on it
        assert queue.states(["811"]) == {}
        assert "sacct: no answer within 0.5 s" in caplog.text
    else:
        ask = queue.states if command == "squeue" else queue.cancel
        with pytest.raises(UserError, match=f"{command}: no answer within 0.5 s"):
            ask(["811"])
    assert time.monotonic() - start < 30


def test_what_a_user_has_set_for_own_calls_changes_nothing(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_FORMAT", "SQUEUE_PARTITION", "SACCT_FORMAT", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "relative")
    monkeypatch.setenv("SLURM_CONF", "kept")
    slurm.does("squeue", f'env > "{slurm.folder}/environment"')
    queue.states(["811"])
    seen = (slurm.folder / "environment").read_text()
    assert "SQUEUE_" not in seen
    assert "SACCT_" not in seen
    assert "SLURM_TIME_FORMAT=%s\n" in seen
    assert "SLURM_CONF=kept\n" in seen


def test_cancelling(slurm: FakeSlurm) -> None:
    queue.cancel(["811", "812"])
    assert slurm.calls("scancel") == ["811 812"]
    over = (
        "scancel: error: Kill job error on job id 811: Job/step already completing or completed\n"
    )
    slurm.says("scancel", err=over, code=1)
    queue.cancel(["811"])
    denied = "scancel: error: Kill job error on job id 812: Access/permission denied"
    slurm.says("scancel", err=over + denied, code=1)
    with pytest.raises(UserError) as error:
        queue.cancel(["811", "812"])
    assert str(error.value) == denied


def test_a_task_of_an_array_is_known_by_its_own_name() -> None:
    def line(array: str, state: str, task: str) -> str:
        cells = {"ArrayJobID": array, "State": state, "ArrayTaskID": task}
        return "".join(cells.get(name, "").ljust(size) for name, size in queue._WIDTHS.items())

    jobs = queue.parse_queue(
        "\n".join(
            [line("12", "RUNNING", "0"), line("12", "FAILED", "1"), line("13", "PENDING", "N/A")]
        )
    )
    assert {job: state.state for job, state in jobs.items()} == {
        "12": "RUNNING",
        "12_0": "RUNNING",
        "12_1": "FAILED",
        "13": "PENDING",
    }
    assert not jobs["12_1"].alive
