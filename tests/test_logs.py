"""What `pressroom logs` shows: the right file, its end, and what comes, until the run is over."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import recipe_text
from fake_slurm import FakeSlurm, queue_line

from launch import logs
from launch.jobs import Job, Start, record_job, record_start
from pressroom.cli import main
from pressroom.console import UserError
from pressroom.locks import lock
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir

WHEN = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def run(home: Path) -> RunDir:
    """A run that has a recipe, and nothing else yet."""
    (home / "my.yaml").write_text(recipe_text(home / "base"))
    made = RunDir(home / "runs" / "tiny" / "2026-01-02T03-04-05")
    made.begin(Recipe.load("my.yaml"))
    made.logs.mkdir()
    return made


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster without accounting and without jobs."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def chain(run: RunDir) -> RunDir:
    """Its jobs: 1 trains, 2 merges."""
    for job, stage in (("1", "train"), ("2", "merge")):
        record_job(run, Job(job=job, stage=stage, submitted=WHEN))
    return run


def pressroom(*arguments: str) -> Result:
    """What the command says; a user's mistake is raised."""
    return CliRunner().invoke(main, ["logs", *arguments], catch_exceptions=False)


def test_the_last_lines_of_rank_0(run: RunDir) -> None:
    run.rank_log(0).write_text("".join(f"line {n}\n" for n in range(100)))
    run.rank_log(1).write_text("other\n")
    shown = pressroom("tiny").output.splitlines()
    assert shown == [f"line {n}" for n in range(60, 100)]
    assert pressroom("tiny", "-n", "2").output == "line 98\nline 99\n"
    assert pressroom("tiny", "-n", "0").output == ""
    assert len(pressroom("tiny", "-n", "1000").output.splitlines()) == 100
    assert pressroom("tiny", "--rank", "1").output == "other\n"
    with pytest.raises(UserError, match="--rank 2: has logs of 2 ranks, 0 to 1"):
        pressroom("tiny", "--rank", "2")


@pytest.mark.parametrize(
    ("text", "lines", "begin"),
    [
        (b"", 3, b""),
        (b"one", 1, b"one"),
        (b"one\n", 1, b"one\n"),
        (b"one\ntwo", 1, b"two"),
        (b"one\n\n\n", 2, b"\n\n"),
        (b"one\ntwo\n", 2, b"one\ntwo\n"),
        (b"one\ntwo\n", 3, b"one\ntwo\n"),
        (b"one\ntwo\n", 0, b""),
        (b"x" * 50_000 + b"\n" + b"y" * 40_000 + b"\nz\n", 2, b"y" * 40_000 + b"\nz\n"),
        (b"x" * 50_000 + b"\n" + b"y" * 40_000 + b"\nz", 3, b"x" * 50_000),
    ],
)
def test_where_the_last_lines_begin(tmp_path: Path, text: bytes, lines: int, begin: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(text)
    end = text[logs.start_of_last(path, lines) :]
    assert end.startswith(begin)
    assert len(end) == len(begin) or lines == 3


def test_lines_stand_as_a_terminal_would_show_them(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret-token")
    said = b"0%\r50%\r100%\r\n\x1b]0;title\x07\x1b[2Jred\nlogin very-secret-token\n\xff\xfeend"
    run.rank_log(0).write_bytes(said)
    assert pressroom("tiny").output.splitlines() == [
        "100%",
        r"\x1b]0;title\x07\x1b[2Jred",
        "login <HF_TOKEN>",
        "\ufffd\ufffdend",
    ]


def test_before_there_are_ranks_the_job_speaks(
    chain: RunDir, slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slurm.says("squeue", queue_line(2, "PENDING", reason="Dependency"))
    assert pressroom("tiny").exit_code == 0
    assert "no log yet: queued, merge, Dependency" in caplog.text
    assert pressroom("tiny", "--stage", "merge").exit_code == 0
    assert "no log yet; job 2 (merge) is pending Dependency" in caplog.text
    assert pressroom("tiny", "--stage", "train").exit_code == 0
    assert "no log yet; job 1 (train) is not known to SLURM" in caplog.text
    chain.job_log("1", 0).write_text("modules loaded\n")
    caplog.clear()
    assert pressroom("tiny").output == "modules loaded\n"
    assert "1_0_log.out:" in caplog.text
    chain.job_log("2", 0).write_text("merging\n")
    chain.rank_log(0).write_text("training\n")
    assert pressroom("tiny").output == "training\n"
    assert pressroom("tiny", "--stage", "merge").output == "merging\n"
    assert pressroom("tiny", "--stage", "train").output == "modules loaded\n"


def test_of_a_stage_the_newest_job_speaks(chain: RunDir, slurm: FakeSlurm) -> None:
    chain.job_log("2", 0).write_text("merging\n")
    record_job(chain, Job(job="3", stage="merge", submitted=WHEN))
    assert pressroom("tiny", "--stage", "merge").output == ""
    chain.job_log("3", 0).write_text("merging again\n")
    assert pressroom("tiny", "--stage", "merge").output == "merging again\n"


def test_each_task_of_a_stage_has_its_own_log(
    chain: RunDir, slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    record_job(chain, Job(job="5", stage="prep", submitted=WHEN, tasks=3))
    assert pressroom("tiny", "--stage", "prep").output == ""
    chain.job_log("5_2", 0).write_text("the last is the first to begin\n")
    assert pressroom("tiny", "--stage", "prep").output == "the last is the first to begin\n"
    assert pressroom("tiny").output == "the last is the first to begin\n"
    chain.job_log("5_0", 0).write_text("first\n")
    assert pressroom("tiny", "--stage", "prep").output == "first\n"
    assert pressroom("tiny", "--task", "2").output == "the last is the first to begin\n"
    caplog.clear()
    assert pressroom("tiny", "--stage", "prep", "--task", "1").output == ""
    assert "no log yet; job 5 (prep)" in caplog.text
    chain.rank_log(0).write_text("training\n")
    assert pressroom("tiny", "--task", "0").output == "first\n"
    with pytest.raises(UserError, match="--task 3: prep has 3 tasks, 0 to 2"):
        pressroom("tiny", "--task", "3")
    with pytest.raises(UserError, match="the newest job of merge is a single task"):
        pressroom("tiny", "--stage", "merge", "--task", "0")
    with pytest.raises(UserError, match="--rank and --task"):
        pressroom("tiny", "--rank", "0", "--task", "0")


def test_what_a_user_does_wrong(chain: RunDir) -> None:
    with pytest.raises(UserError, match=r"--task 0: .*: no job is several tasks"):
        pressroom("tiny", "--task", "0")
    with pytest.raises(UserError, match=r"--stage mrege: .* did you mean merge\?"):
        pressroom("tiny", "--stage", "mrege")
    with pytest.raises(UserError, match="it has jobs of: train, merge"):
        pressroom("tiny", "--stage", "xyz")
    with pytest.raises(UserError, match="--rank and --stage"):
        pressroom("tiny", "--stage", "merge", "--rank", "1")
    for path in chain.jobs.glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match="it has no jobs"):
        pressroom("tiny", "--stage", "train")
    assert CliRunner().invoke(main, ["logs", "tiny", "--rank", "-1"]).exit_code == 2
    (chain.jobs / "7.json").write_text("{}")
    with pytest.raises(UserError, match="the record of a job is damaged"):
        pressroom("tiny")


def test_where_there_is_no_log(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert pressroom("tiny").exit_code == 0
    assert "goes to the terminal that started it" in caplog.text
    start = Start(job="77", restart=0, stage="train", nodes=("n",), step=0, started=WHEN)
    record_start(run, start)
    assert pressroom("tiny").exit_code == 0
    assert "`scontrol show job 77` says (StdOut)" in caplog.text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and ask all the time."""
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(logs, "ASK_SECONDS", 0.05)


def meanwhile(*steps: Callable[[], object]) -> threading.Thread:
    """Take steps one after the other, while something is followed."""

    def go() -> None:
        for step in steps:
            time.sleep(0.4)
            step()

    thread = threading.Thread(target=go)
    thread.start()
    return thread


def append(path: Path, text: str) -> Callable[[], object]:
    """A step that adds to a file."""

    def write() -> None:
        with path.open("a") as file:
            file.write(text)

    return write


@pytest.mark.usefixtures("quick")
def test_following_through_a_requeue_to_the_end(
    chain: RunDir, slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slurm.says("squeue", queue_line(1, "RUNNING", nodes="n"))
    log = chain.rank_log(0)
    chain.job_log("1", 0).write_text("set up\n")
    waits = queue_line(1, "PENDING", reason="BeginTime", restarts=1)
    thread = meanwhile(
        append(chain.job_log("1", 0), "ranks start\n"),
        append(log, "step 1\nste"),
        append(log, "p 2\n"),
        lambda: slurm.says("squeue", waits),
        append(log, "once more\n"),
        append(log, "last words"),
        lambda: slurm.says("squeue", queue_line(1, "FAILED", reason="NonZeroExitCode")),
    )
    shown = pressroom("tiny", "-f", "-n", "1").output
    thread.join()
    assert shown.splitlines() == (
        ["set up", "ranks start", "step 1", "step 2", "once more", "last words"]
    )
    assert "failed, train, SLURM says FAILED NonZeroExitCode" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_log_that_is_emptied_begins_anew(chain: RunDir, slurm: FakeSlurm) -> None:
    slurm.says("squeue", queue_line(1, "RUNNING", nodes="n"))
    chain.rank_log(0).write_text("a long line from before\n")
    thread = meanwhile(
        lambda: chain.rank_log(0).write_text("anew\n"),
        lambda: slurm.says("squeue"),
    )
    assert pressroom("tiny", "-f").output == "a long line from before\nanew\n"
    thread.join()


@pytest.mark.usefixtures("quick")
def test_following_what_waits_for_ever_ends(
    chain: RunDir, slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slurm.says("squeue", queue_line(1, "PENDING", reason="DependencyNeverSatisfied"))
    assert pressroom("tiny", "-f").output == ""
    assert "no log yet: failed, train, train will never start" in caplog.text


@pytest.mark.usefixtures("quick")
def test_slurm_may_be_away_for_a_moment(
    chain: RunDir, slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.says("squeue", err="squeue: error: Unable to contact slurm controller", code=1)
    chain.rank_log(0).write_text("step 1\n")
    thread = meanwhile(
        lambda: slurm.says("squeue", queue_line(1, "RUNNING", nodes="n")),
        append(chain.rank_log(0), "step 2\n"),
        lambda: slurm.says("squeue"),
    )
    assert pressroom("tiny", "-f").output == "step 1\nstep 2\n"
    thread.join()
    assert "Unable to contact" in caplog.text


@pytest.mark.usefixtures("quick")
def test_without_slurm_the_lock_tells_the_end(run: RunDir) -> None:
    run.rank_log(0).write_text("step 1\n")
    held = lock(run.lock, "the run")
    held.__enter__()
    thread = meanwhile(append(run.rank_log(0), "step 2\n"), lambda: held.__exit__(None, None, None))
    assert pressroom("tiny", "-f").output == "step 1\nstep 2\n"
    thread.join()


def test_ctrl_c_ends_it_quietly(run: RunDir) -> None:
    run.rank_log(0).write_text("step 1\n")
    with lock(run.lock, "the run"):
        code = "from pressroom.cli import entry; entry()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "logs", "tiny", "-f"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What a shell runs in the background ignores it, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout
        assert process.stdout.readline() == "step 1\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert not re.search("Traceback|interrupted", error)
