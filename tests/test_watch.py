"""How a run stands, put together from its files and SLURM's words; and the commands that say so."""

import json
import multiprocessing
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import recipe_text, write_jsonl
from fake_slurm import FakeSlurm, queue_line

from launch.jobs import Job, Start, record_job, record_start
from launch.queue import JobState
from launch.run_facts import facts_of
from launch.run_state import RunState, run_state
from launch.watch import look, table
from pressroom.cli import main
from pressroom.console import UserError
from pressroom.files import publish_json
from pressroom.locks import lock
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.standing import last_lines

CHAIN = {"prep": (), "train": ("1",), "evaluate": ("2",), "merge": ("2",)}
"""Stage -> the jobs it waits for; ids are 1, 2, 3, 4."""
NEVER = JobState(state="PENDING", reason="DependencyNeverSatisfied")
WAITS = JobState(state="PENDING", reason="Dependency")


def at(seconds: float) -> str:
    """A time so far from now, as records write it."""
    stamp = time.time() + seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(stamp))


@pytest.fixture
def run(home: Path) -> RunDir:
    """A run of 100 steps that has a recipe, and nothing else yet."""
    steps = {"learning_rate": 1e-3, "num_steps": 100}
    (home / "my.yaml").write_text(recipe_text(home / "base", optimizer=steps))
    made = RunDir(Path("runs") / "tiny" / "2026-01-02T03-04-05")
    made.begin(Recipe.load("my.yaml"))
    return made


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster without accounting and without jobs."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def submit(run: RunDir, *stages: str, first: int = 1, when: float = -100.0) -> None:
    """Record jobs 1, 2, .. of these stages, of the whole chain when none are named."""
    for number, stage in enumerate(stages or CHAIN, start=first):
        after = () if stages else CHAIN[stage]
        record_job(run, Job(job=str(number), stage=stage, after=after, submitted=at(when)))


def train(run: RunDir, steps: int, seconds: float = 2.0) -> None:
    """Leave the rows of so many steps."""
    rows = [
        {"step": s, "loss": 5 - s / 100, "tokens": 4000, "step_seconds": seconds}
        for s in range(1, steps + 1)
    ]
    write_jsonl(run.metrics, [*rows, {"step": steps, "eval_loss": 3.0}])


def finish(run: RunDir, *stages: str) -> None:
    """Leave what stages leave."""
    for stage in stages:
        output = run.output(stage)
        folder = output if not output.suffix else output.parent
        folder.mkdir(parents=True, exist_ok=True)
        (output / "weights" if folder == output else output).write_text("{}")
        run.record_stage(stage, "key", 1.0)


def state(run: RunDir, queue: dict[str, JobState] | None = None, *, asked: bool = True) -> RunState:
    """How a run stands, where SLURM says so."""
    return run_state(facts_of(run), (queue or {}) if asked else None)


def check(now: RunState, **expected: Any) -> None:
    """See that these of its fields are so."""
    assert {name: getattr(now, name) for name in expected} == expected


def test_without_slurm(run: RunDir) -> None:
    assert state(run) == RunState(state="begun")
    with lock(run.lock, "the run"):
        assert state(run).state == "running"
        train(run, 40)
        now = state(run)
    check(now, state="running", stage="train", job="", step=40, num_steps=100)
    check(now, loss=4.6, tokens_per_second=2000.0, seconds_left=120.0)
    now = state(run)
    check(now, state="stopped", step=40, tokens_per_second=None, seconds_left=None)
    publish_json(run.preempted, {"step": 40})
    assert state(run).state == "preempted"
    run.error.write_text("\n\nthe disk is full\nfree some of it\n")
    check(state(run), state="failed", note="the disk is full")
    run.error.unlink()
    finish(run, "train", "evaluate")
    check(state(run), state="done", stage="evaluate", note="")


def test_the_median_of_the_last_steps_counts(run: RunDir) -> None:
    train(run, 60, seconds=9.0)
    rows = [{"step": s, "loss": 4.0, "tokens": 4000, "step_seconds": 2.0} for s in range(61, 80)]
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.write(
            '{"step": 80, "loss": 4.0, "tokens": 4000, "step_seconds": 500.0}\n{"step": 81, "lo'
        )
    with lock(run.lock, "the run"):
        now = state(run)
    check(now, step=80, tokens_per_second=2000.0, seconds_left=40.0)


def test_a_chain_from_stage_to_stage(run: RunDir) -> None:
    submit(run)
    start = int(time.mktime((2026, 1, 2, 14, 5, 0, 0, 0, -1)))
    first = JobState(state="PENDING", reason="Priority", start=start)
    rest = {"2": WAITS, "3": WAITS, "4": WAITS}
    now = state(run, {"1": first, **rest})
    check(now, state="queued", stage="prep", job="1")
    assert now.note == "Priority, starts about 01-02 14:05"
    now = state(run, {"1": JobState(state="RUNNING", nodes="node1"), **rest})
    check(now, state="running", stage="prep", job="1", note="on node1")

    training = JobState(state="RUNNING", nodes="node[1-2]", start=int(time.time()) - 50)
    rest = {"3": WAITS, "4": WAITS}
    now = state(run, {"2": training, **rest})
    check(now, state="running", stage="train", step=None)
    assert now.note == "loading on node[1-2]"
    train(run, 40)
    now = state(run, {"2": training, **rest})
    check(now, step=40, tokens_per_second=2000.0, note="on node[1-2]")
    later = JobState(state="RUNNING", nodes="node1", start=int(time.time()) + 50)
    now = state(run, {"2": later, **rest})  # started anew after these rows
    check(now, step=40, tokens_per_second=None, note="loading on node1")
    assert "completing on" in state(run, {"2": JobState(state="COMPLETING", nodes="n")}).note

    finish(run, "train")
    now = state(run, {"3": JobState(state="RUNNING", nodes="node2"), "4": WAITS})
    check(now, state="running", stage="evaluate", job="3", tokens_per_second=None)
    finish(run, "evaluate", "merge")
    now = state(run)
    check(now, state="done", stage="merge", step=40, note="")


def test_a_stage_that_is_several_tasks_is_one_row(run: RunDir, slurm: FakeSlurm) -> None:
    submit(run)
    rest = "".join(queue_line(n, "PENDING", reason="Dependency") for n in (2, 3, 4))
    waits = queue_line(1, "PENDING", reason="Priority")
    runs, fails = queue_line(1, "RUNNING", nodes="node1"), queue_line(1, "FAILED", nodes="node2")
    ends = queue_line(1, "COMPLETED", nodes="node1")

    def told(*lines: str) -> list[str]:
        slurm.says("squeue", "".join(lines))
        (row,) = pressroom("runs").output.splitlines()[1:]
        return re.split(" {2,}", row)[1:]

    assert told(waits, waits, rest) == ["queued", "prep", "1", "Priority; 2 pending"]
    assert told(runs, waits, rest)[3] == "1 pending, 1 running on node1"
    assert told(runs, runs, rest) == ["running", "prep", "1", "2 running on node1"]
    assert told(runs, fails, rest)[3] == "1 failed, 1 running on node1"
    over = told(ends, fails, rest.replace("PENDING  ", "CANCELLED"))
    assert over == ["failed", "prep", "1", "SLURM says FAILED; 1 completed, 1 failed"]
    run.error.write_text("prep, task 1: articles.jsonl: not one good article\n")
    assert told(ends, fails)[3] == "prep, task 1: articles.jsonl: not one good article"
    slurm.says("squeue", runs + waits + rest)
    assert "cancelled job 1: prep, running on node1" in pressroom("cancel", "tiny").output
    assert slurm.calls("scancel") == ["2 3 4", "1"]


def test_of_a_name_with_several_runs_the_newest_is_cancelled(run: RunDir, slurm: FakeSlurm) -> None:
    newest = RunDir(run.path.with_name("2026-01-03T03-04-05"))
    newest.begin(Recipe.load("my.yaml"))
    submit(run, "train")
    submit(newest, "train", first=2)
    both = [queue_line(number, "RUNNING", nodes="node1") for number in (1, 2)]
    slurm.says("squeue", "".join(both))
    assert "cancelled job 2: train" in pressroom("cancel", "tiny").output
    assert slurm.calls("scancel") == ["2"]


def test_queued_again(run: RunDir) -> None:
    submit(run, "train")
    train(run, 40)
    begins = JobState(state="PENDING", reason="BeginTime", restarts=1)
    now = state(run, {"1": begins})
    check(now, state="requeued", step=40, num_steps=100)
    assert now.note == "BeginTime; started once"
    for restart in range(3):
        record_start(
            run,
            Start(job="1", restart=restart, stage="train", nodes=("n",), step=0, started=at(-50)),
        )
    now = state(run, {"1": JobState(state="REQUEUE_HOLD")})
    check(
        now,
        state="requeued",
        note="REQUEUE_HOLD: `scontrol release 1` lets it start; started 3 times",
    )
    held = JobState(state="PENDING", reason="job requeued in held state")
    assert "scontrol release 1" in state(run, {"1": held}).note


def test_a_job_that_never_starts_names_what_failed(run: RunDir) -> None:
    submit(run)
    train(run, 2)
    now = state(run, {"2": JobState(state="FAILED"), "3": NEVER, "4": NEVER})
    check(now, state="failed", stage="train", job="2")
    never = "evaluate and merge will never start: `pressroom cancel` it"
    assert now.note == f"train failed (job 2); {never}"
    run.error.write_text("the GPU's memory is full\n")
    assert state(run, {"3": NEVER, "4": NEVER}).note == f"the GPU's memory is full; {never}"
    finish(run, "train")
    run.error.unlink()
    now = state(run, {"3": JobState(state="RUNNING", nodes="n"), "4": NEVER})
    check(now, state="running", stage="evaluate")
    assert "merge will never start" in now.note


@pytest.mark.parametrize(
    ("ended", "expected", "note"),
    [
        (None, "stopped", "its job is over, without a word and without output"),
        (JobState(state="COMPLETED"), "stopped", "its job is over, without a word"),
        (JobState(state="TIMEOUT", reason="TimeLimit"), "failed", "SLURM says TIMEOUT TimeLimit"),
        (JobState(state="OUT_OF_MEMORY"), "failed", "SLURM says OUT_OF_MEMORY"),
        (JobState(state="NODE_FAIL"), "failed", "SLURM says NODE_FAIL"),
        (JobState(state="CANCELLED"), "cancelled", ""),
        (JobState(state="PREEMPTED"), "preempted", "is not queued again"),
    ],
)
def test_a_training_whose_job_is_over(
    run: RunDir, ended: JobState | None, expected: str, note: str
) -> None:
    submit(run, "prep", "train")
    train(run, 7)
    now = state(run, {"2": ended} if ended else {})
    check(now, state=expected, stage="train", job="2", step=7)
    assert now.note.startswith(note)
    run.error.write_text("a rank died\n")
    # Ranks that a cancellation ends may leave an error; else their own word is the better one.
    assert state(run, {"2": ended} if ended else {}).state == (
        "cancelled" if expected == "cancelled" else "failed"
    )


def test_a_preparation_that_failed_or_was_cancelled(run: RunDir) -> None:
    submit(run)
    cancelled = JobState(state="CANCELLED")
    now = state(run, {"1": JobState(state="FAILED", reason="NonZeroExitCode"), "2": cancelled})
    check(now, state="failed", stage="prep", note="SLURM says FAILED NonZeroExitCode")
    now = state(run, {"1": JobState(state="COMPLETED"), "2": cancelled})
    check(now, state="cancelled", stage="train")
    assert state(run).stage == "train"  # of prep nobody knows anything bad


def test_an_older_job_is_history(run: RunDir) -> None:
    submit(run, "train")
    submit(run, "train", first=2, when=-50)
    waits = JobState(state="PENDING", reason="Priority")
    now = state(run, {"1": JobState(state="FAILED"), "2": waits})
    check(now, state="queued", job="2")
    finish(run, "train")
    submit(run, "evaluate", first=3, when=-20)
    finish(run, "evaluate")
    assert state(run).state == "done"
    submit(run, "evaluate", first=4, when=+20)  # with other settings
    check(state(run), state="stopped", job="4")


def test_where_slurm_cannot_be_asked(run: RunDir) -> None:
    submit(run, "train")
    assert state(run, asked=False).state == "unknown"
    train(run, 3)
    with lock(run.lock, "the run"):
        assert state(run, asked=False).state == "running"
    run.error.write_text("the disk is full")
    assert state(run, asked=False).state == "failed"
    run.error.unlink()
    finish(run, "train")
    assert state(run, asked=False).state == "done"


def test_a_job_of_plain_sbatch(run: RunDir) -> None:
    start = Start(job="77", restart=0, stage="train", nodes=("n",), step=0, started=at(-9))
    record_start(run, start)
    with run.starts.open("a") as file:
        file.write('{"job": "78", "rest')
    now = state(run, {"77": JobState(state="RUNNING", nodes="node1", start=1)})
    check(now, state="running", stage="train", job="77")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stages.json", "{"),
        ("stages.json", '{"train": {"finished": "yesterday"}}'),
        ("stages.json", "[1]"),
        ("submission/jobs/1.json", "{"),
        ("submission/jobs/1.json", '{"job": "1", "after": 3}'),
        ("submission/jobs/1.json", '{"job": "1", "stage": "train", "after": [], "submitted": "?"}'),
        ("recipe.yaml", "name: [\n"),
        ("recipe.yaml", "name: tiny\nnonsense: 1\n"),
    ],
)
def test_a_damaged_file_is_a_note(run: RunDir, slurm: FakeSlurm, name: str, content: str) -> None:
    train(run, 3)
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text(content)
    (now,) = look([run])
    check(now, state="stopped", step=3)
    assert re.search("damaged|yaml", now.note)
    lines = pressroom("runs").output.splitlines()
    assert len(lines) == 2  # whatever the note
    assert "stopped" in lines[1]


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\n", b"[]\n{}\n", b'{"step": 1, "loss": NaN}\n']
)
def test_damaged_metrics_are_no_row(run: RunDir, content: bytes) -> None:
    run.metrics.write_bytes(content)
    now = state(run)
    assert now.state == "stopped"
    assert now.step in (None, 1)
    assert pressroom("runs", "--json").exit_code == 0


def pressroom(*arguments: str) -> Result:
    """What a command says; a user's mistake is raised."""
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_the_table(run: RunDir, slurm: FakeSlurm, home: Path) -> None:
    submit(run, "train", first=812)
    train(run, 40)
    slurm.says("squeue", queue_line(812, "RUNNING", nodes="node[1-2]", start=1))
    other = RunDir(home / "runs" / "other" / "2026-01-03T00-00-00")
    other.begin(Recipe.load("my.yaml"))
    head, first, second = pressroom("runs").output.splitlines()
    assert head.split() == ["run", "state", "stage", "step", "loss", "tokens/s", "left", "job"]
    assert first == "other/2026-01-03T00-00-00  begun"
    cells = ["running", "train", "40/100", "4.6", "2,000", "2:00", "812", "on node[1-2]"]
    assert re.split(" {2,}", second)[1:] == cells
    assert second.index("40/100") + len("40/100") == head.index("step") + len("step")
    assert len(slurm.calls("squeue")) == 1
    assert "other" not in pressroom("runs", "tiny").output
    assert "other" not in pressroom("runs", "tiny/2026-01-02T03-04-05").output


def test_as_json(run: RunDir) -> None:
    write_jsonl(run.metrics, [{"step": 4, "loss": float("nan"), "step_seconds": 1.0}])
    (row,) = json.loads(pressroom("runs", "--json").output, parse_constant=pytest.fail)
    assert row["run"] == "tiny/2026-01-02T03-04-05"
    assert Path(row["path"]) == run.path.absolute()
    assert (row["state"], row["step"], row["num_steps"], row["loss"]) == ("stopped", 4, 100, None)
    assert json.loads(pressroom("runs", "tiny", "--json").output)


def test_the_newest_twenty(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    for day in range(1, 23):
        RunDir(run.path.parent / f"2026-02-{day:02}T00-00-00").begin(Recipe.load("my.yaml"))
    caplog.set_level("INFO")
    lines = pressroom("runs").output.splitlines()
    assert len(lines) == 1 + 20
    assert lines[1].startswith("tiny/2026-02-22")
    assert "the newest 20 of 23; --all" in caplog.text
    assert len(pressroom("runs", "--all").output.splitlines()) == 1 + 23


def test_of_a_long_run_the_end_is_read(run: RunDir) -> None:
    train(run, 20_000)
    facts = facts_of(run)
    assert 50 < len(facts.rows) < 500
    steps = [int(row["step"]) for row in facts.rows]
    assert steps == list(range(steps[0], 20_001))


@pytest.mark.parametrize(
    ("num_bytes", "lines"),
    [(0, []), (2, ["c"]), (3, ["c"]), (5, ["bb", "c"]), (99, ["a", "bb", "c"])],
)
def test_only_whole_lines_are_last(tmp_path: Path, num_bytes: int, lines: list[str]) -> None:
    (tmp_path / "log").write_text("a\nbb\nc\n")
    assert last_lines(tmp_path / "log", num_bytes) == lines


def test_no_runs_yet_and_a_name_that_is_none(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert pressroom("runs").output == ""
    assert "no runs yet under" in caplog.text
    assert pressroom("runs", "--json").output == "[]\n"
    with pytest.raises(UserError, match="no such run"):
        pressroom("runs", "nobody")


def test_names_are_compared(run: RunDir) -> None:
    for command in ("runs", "logs", "cancel"):
        with pytest.raises(UserError, match=r"tniy: no such run .* did you mean tiny"):
            pressroom(command, "tniy")


def test_slurm_that_is_down_leaves_the_files(
    run: RunDir, slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    submit(run, "train")
    slurm.says("squeue", err="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert "unknown" in pressroom("runs").output
    assert "Unable to contact slurm controller" in caplog.text
    with pytest.raises(UserError, match="Unable to contact"):
        pressroom("cancel", "tiny")


def test_nothing_but_the_width_is_cut() -> None:
    rows = [["a/1", "failed", "train", "3", "", "", "", "7", "why " * 30]]
    plain = table(rows, None, False)
    assert plain[1].endswith("why why why")
    head, cut = table(rows, 40, False)
    assert head == "run  state   stage  step  job"
    assert len(cut) == 40
    assert cut.endswith("…")
    painted = table(rows, 40, True)[1]
    assert re.sub(r"\x1b\[\d+m", "", painted) == cut
    assert "\x1b[31mfailed\x1b[0m" in painted
    assert len(table(rows, 7, True)[1]) < 30


def test_secrets_and_control_characters_do_not_reach_the_terminal(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", 'a"very-secret-token')
    run.error.write_text('\x1b[31mdenied: a"very-secret-token\nmore')
    for arguments in (["runs"], ["runs", "--json"]):
        shown = pressroom(*arguments).output
        assert "very-secret" not in shown
        assert "\x1b" not in shown
        assert "denied: <HF_TOKEN>" in shown


def test_cancelling_takes_dependents_first(run: RunDir, slurm: FakeSlurm) -> None:
    submit(run)
    slurm.says(
        "squeue",
        queue_line(1, "COMPLETED")
        + queue_line(2, "RUNNING", nodes="node1")
        + queue_line(3, "PENDING", reason="Dependency")
        + queue_line(4, "PENDING", reason="Dependency"),
    )
    said = pressroom("cancel", "tiny").output
    assert slurm.calls("scancel") == ["3 4", "2"]
    assert said.splitlines() == [
        "cancelled job 3: evaluate, pending",
        "cancelled job 4: merge, pending",
        "cancelled job 2: train, running on node1",
    ]


def test_nothing_to_cancel(run: RunDir, slurm: FakeSlurm) -> None:
    assert "nothing to cancel" in pressroom("cancel", "tiny").output
    submit(run)
    slurm.says("squeue", queue_line(2, "CANCELLED"))
    assert "nothing to cancel" in pressroom("cancel", "tiny").output
    assert slurm.calls("scancel") == []


def test_what_cannot_be_cancelled_from_here(
    run: RunDir, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submit(run, "train")
    slurm.says("squeue", queue_line(1, "RUNNING", nodes="node1"))
    denied = "scancel: error: Kill job error on job id 1: Access/permission denied"
    slurm.says("scancel", err=denied, code=1)
    with pytest.raises(UserError, match="Access/permission denied"):
        pressroom("cancel", "tiny")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no SLURM on this machine"):
        pressroom("cancel", "tiny")


def _hold(path: str, ready: Any, done: Any) -> None:
    with lock(Path(path), "the run"):
        ready.set()
        done.wait(60)


def test_a_run_that_trains_here_is_named_with_its_process(run: RunDir, home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(run.lock), ready, done))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(
            UserError, match=f"by process {process.pid}; `kill -USR2 {process.pid}`"
        ):
            pressroom("cancel", "tiny")
        text = run.lock.read_text().replace(socket.gethostname(), "far-away")
        run.lock.write_text(text)
        with pytest.raises(UserError, match=f"`kill -USR2 {process.pid}` on far-away"):
            pressroom("cancel", "tiny")
        run.lock.write_text("")
        with pytest.raises(UserError, match="does not say its name"):
            pressroom("cancel", "tiny")
    finally:
        done.set()
        process.join()
