"""Where hours went: with accounts, without, without SLURM; each second of each GPU in one part."""

import json
import math
import socket
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, queue_line
from hypothesis import given
from hypothesis import strategies as st
from ledgers import DAY, a_run, accounts, iso, marks, stage, start, started, submitted, write

from launch.ledger import Row, of_runs, rows, totals
from launch.ledger_accounts import parse
from launch.ledger_facts import RunFacts
from launch.ledger_own import Claim
from launch.ledger_spells import PARTS, spells
from pressroom.files import publish_json
from pressroom.locks import lock
from pressroom.run_dir import RunDir
from pressroom.times import Mark, Start, Times

SAID = Path(__file__).parent / "slurm_said"
FIRST = "load 0 60, step 1 10, step 2 10, save 2 5, step 3 10, evaluate 3 20, step 4 10"
"""125 s, of which a start from step 2 does 40 s again."""
NEVER = "4|4|CANCELLED by 0|1795366023|1795366023|0||0\n5|5|PENDING|Unknown|Unknown|0||0\n"
"""Jobs that ended, or wait, in the queue."""
SECOND = "load 2 50, step 3 10, evaluate 3 20, step 4 10, save 4 5, end 4 1"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster without accounting and without jobs."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def only(run: RunDir, **parts: float | None) -> Row:
    """A run's row, of GPUs if it had any; in it these parts take so many seconds of one."""
    row = rows(of_runs([run]))[0]
    wanted = {name: None if value is None else value / 3600 for name, value in parts.items()}
    found = {name: row.parts[name] for name in wanted}
    assert found == pytest.approx(wanted, abs=1e-9)
    assert row.allocated == pytest.approx(math.fsum(v or 0 for v in row.parts.values()))
    return row


def test_a_job_with_accounts_that_was_requeued(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    # The node's clock is an hour behind the controller's: no time of both is ever subtracted.
    for restart, (at, done) in enumerate([(DAY - 3590, FIRST), (DAY - 3000, SECOND)]):
        started(run, "7", at - 10, restart=restart, step=2 * restart)
        write(run, start(at, job="7", restart=restart), *marks(done))
    slurm.says(
        "sacct",
        accounts(("7", "REQUEUED", DAY, 150, 8), ("7", "COMPLETED", DAY + 600, 120, 8, 7.2e6)),
    )
    # Before the first: 10 s of launch; after it, 150 - 10 - 125 s that were idle.
    row = only(
        run,
        steps=8 * 40,
        saving=8 * 10,
        evaluation=8 * 20,
        loading=8 * 70,
        lost=8 * (40 + 60),
        idle=8 * (15 + 15),
        unknown=None,
        stages=None,
    )
    assert (row.unit, row.starts, row.at_least) == ("GPU", 2, False)
    assert row.allocated == pytest.approx(8 * 270 / 3600)
    assert row.useful == pytest.approx(60 / 270)
    assert row.kwh is None  # 7.2e6 is no number of joules as sacct prints it
    assert row.notes == ()


def test_energy_is_what_slurm_has_measured(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    submitted(run, "8", "evaluate")
    slurm.says(
        "sacct",
        accounts(("7", "COMPLETED", DAY, 3600, 8, 7_200_000), ("8", "COMPLETED", DAY, 36, 1, 0)),
    )
    (row,) = rows(of_runs([run]), price=2.5)
    assert row.kwh == 2.0
    assert "energy was measured of 1 of 2 starts" in row.notes
    assert row.cost == pytest.approx(2.5 * (8 + 0.01))
    assert row.parts["stages"] == pytest.approx(0.01)


def test_a_chain_its_array_and_its_cpus(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "2", "prep", tasks=3)
    submitted(run, "3", "train")
    submitted(run, "4", "evaluate")
    submitted(run, "5", "merge")
    lines = [("2_0=6", "COMPLETED", DAY, 30, 0), ("2_1=7", "FAILED", DAY, 10, 0)]
    lines += [("2_2=2", "COMPLETED", DAY + 30, 20, 0), ("3", "FAILED", DAY + 60, 100, 8)]
    slurm.says("sacct", accounts(*lines) + NEVER)
    on_gpus, on_cpus = rows(of_runs([run]))[0], rows(of_runs([run]))[1]
    assert (on_gpus.unit, on_gpus.starts) == ("GPU", 1)
    assert on_gpus.parts["loading"] == pytest.approx(8 * 100 / 3600)  # it has no step
    assert on_cpus.unit == "CPU"
    assert on_cpus.parts["stages"] == pytest.approx(64 * 60 / 3600)
    assert on_cpus.useful is None
    assert (on_gpus.notes, on_gpus.at_least, on_cpus.at_least) == ((), False, False)


def test_a_start_that_never_came_to_its_first_step_was_loading(
    home: Path, slurm: FakeSlurm
) -> None:
    run = a_run(home)
    submitted(run, "7")
    for restart in range(3):
        started(run, "7", DAY + 1000 * restart, restart=restart)
    write(run, start(DAY + 1010, job="7", restart=1))  # killed while it loaded
    write(run, start(DAY + 2010, job="7", restart=2), *marks("load 0 30, step 1 10, end 1 0"))
    each = [("7", state, DAY + 1000 * n, 100, 8) for n, state in enumerate(["NODE_FAIL"] * 3)]
    slurm.says("sacct", accounts(*each))
    only(run, loading=8 * 100, lost=8 * (100 + 40), steps=8 * 10, idle=8 * 50)


def test_accounts_that_do_not_count_gpus(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    submitted(run, "8", "evaluate")
    write(run, start(DAY, job="7"), *marks("load 0 10, step 1 90"))
    slurm.says("sacct", accounts(("7", "FAILED", DAY, 100, None), ("8", "FAILED", DAY, 10, None)))
    row = only(run, steps=8 * 90, loading=8 * 10, stages=10)
    assert row.unit == "GPU"
    assert "do not count GPUs" in row.notes[0]


def test_gpus_without_a_rank_are_idle(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    write(run, start(DAY, job="7", gpus=6), *marks("load 0 10, step 1 90"))
    slurm.says("sacct", accounts(("7", "FAILED", DAY, 100, 8)))
    only(run, steps=6 * 90, loading=6 * 10, idle=2 * 100)


def test_an_account_without_an_end_counts_to_the_last_word(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    write(run, start(DAY, job="7"), *marks("load 0 10, step 1 90"))
    slurm.says("sacct", accounts(("7", "RUNNING", DAY, 1_000_000, 8)))
    row = only(run, steps=8 * 90, loading=8 * 10, idle=0)
    assert row.at_least
    slurm.says("squeue", queue_line(7, "RUNNING", nodes="n[1-2]", start=DAY))
    assert not only(run, idle=8 * (1_000_000 - 100)).at_least


def test_a_job_of_long_ago_with_the_same_id_is_another(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    old = ("7", "COMPLETED", DAY - 90 * 86_400, 1_000_000, 8)
    slurm.says("sacct", accounts(old, ("7", "FAILED", DAY, 100, 8)))
    assert only(run, loading=8 * 100).starts == 1


def test_tasks_of_one_array_train_a_run_each(home: Path, slurm: FakeSlurm) -> None:
    runs = [a_run(home, stamp=DAY + n) for n in range(2)]
    for n, run in enumerate(runs):
        submitted(run, "7")
        started(run, str(8 + n), DAY)
    lines = [("7_0=8", "FAILED", DAY, 100, 1), ("7_1=9", "FAILED", DAY, 200, 1)]
    slurm.says("sacct", accounts(*lines))
    assert only(runs[0]).allocated == pytest.approx(100 / 3600)
    found = of_runs([*runs, runs[0]])
    (total,) = totals(found)
    assert total.allocated == pytest.approx(300 / 3600)
    assert total.starts == 2


# Without accounting.


def test_without_accounting_a_run_counts_from_its_first_word_to_its_last(
    home: Path, slurm: FakeSlurm
) -> None:
    run = a_run(home)
    submitted(run, "7")
    submitted(run, "8", "evaluate")
    submitted(run, "9", "merge")
    started(run, "7", DAY)
    started(run, "7", DAY + 1000, restart=1, step=2)
    write(run, start(DAY + 10, job="7"), *marks(FIRST))
    write(run, start(DAY + 1010, job="7", restart=1), *marks(SECOND))
    write(run, stage("train", DAY + 999, 120, job="7", restart=1))
    write(run, stage("evaluate", DAY + 2000, 30, job="8", gpus=1))
    row = only(
        run,
        steps=8 * 40,
        lost=8 * 100,
        loading=8 * 70,
        stages=30,
        idle=8 * (120 - 105),
        saving=80,
    )
    assert (row.unit, row.at_least) == ("GPU", True)
    assert (
        "SLURM keeps no accounts: counted from the first line that it wrote to the last"
        in row.notes
    )
    on_cpus = rows(of_runs([run]))[1:]
    assert [each.notes for each in on_cpus] == [
        ("SLURM keeps no accounts, and merge (job 9) has left no times",)
    ]


def test_squeue_knows_for_some_minutes(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    submitted(run, "8", "merge")
    submitted(run, "9", "generate")
    started(run, "7", DAY)
    line = queue_line(7, "TIMEOUT", nodes="n[1-2]", start=DAY - 5, end=DAY + 95)
    waits = queue_line(8, "PENDING", reason="Dependency") + queue_line(9, "CANCELLED")
    slurm.says("squeue", line + waits)
    write(run, start(DAY + 10, job="7"), *marks("load 0 10, step 1 60"))
    row = only(run, steps=8 * 60, loading=8 * 20, idle=8 * 20)
    assert (row.at_least, row.notes, row.starts) == (False, (), 1)


def test_slurm_on_another_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    run = a_run(home)
    submitted(run, "7")
    started(run, "7", DAY)
    row = only(run, steps=None)
    assert (row.allocated, row.at_least) == (0, True)
    assert "SLURM is not on this machine, and train (job 7) has left no times" in row.notes


# Without SLURM.


def test_a_chain_on_one_machine(home: Path) -> None:
    run = a_run(home)
    write(run, stage("prep", DAY - 100, 30, gpus=0))
    write(run, start(DAY + 10, gpus=2), *marks(FIRST), stage("train", DAY, 140))
    write(run, start(DAY + 1010, gpus=2), *marks(SECOND), stage("train", DAY + 1000, 110))
    write(run, stage("evaluate", DAY + 3000, 20, gpus=1))
    row = only(run, steps=80, lost=200, loading=140, idle=2 * (5 + 5), stages=20, evaluation=40)
    assert (row.unit, row.starts, row.at_least, row.notes) == ("GPU", 3, False, ())
    assert rows(of_runs([run]))[1].parts["stages"] == pytest.approx(16 * 30 / 3600)


def test_a_killed_launch_counts_to_its_last_word(home: Path) -> None:
    run = a_run(home)
    write(run, start(DAY, gpus=0, cpus=4), *marks(FIRST), '{"what": "st')
    write(run, "\n", {"what": "step", "step": True, "seconds": 5}, {"what": "step"}, [1])
    row = only(run, steps=4 * 40, idle=0, lost=0)
    assert (row.unit, row.at_least) == ("CPU", True)
    assert "a start was killed: counted until it wrote last" in row.notes
    assert "times.jsonl: damaged lines, left out" in row.notes


@pytest.mark.parametrize("host", ["", "elsewhere"])
def test_a_run_in_progress(home: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    run = a_run(home)
    monkeypatch.setattr("launch.ledger.time.time", lambda: DAY + 500.0)
    write(
        run, start(DAY, gpus=2, host=host or socket.gethostname()), *marks("load 0 10, step 1 90")
    )
    with lock(run.lock, "the run"):
        row = only(run, steps=180, idle=0 if host else 2 * 400)
    assert row.at_least == bool(host)
    assert any("by another clock" in note for note in row.notes) == bool(host)


def test_a_run_in_progress_that_loads_is_not_idle(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(home)
    monkeypatch.setattr("launch.ledger.time.time", lambda: DAY + 500.0)
    write(run, start(DAY, gpus=2, host=socket.gethostname()))
    with lock(run.lock, "the run"):
        only(run, loading=1000, idle=0)


def test_runs_that_are_older_than_their_times(home: Path) -> None:
    run = a_run(home)
    run.metrics.write_text(
        '{"step": 1, "step_seconds": 7.5}\nbroken\n{"step": 2, "eval_loss": 1}\n'
    )
    done = {"finished": iso(DAY), "seconds": 20.0, "key": ""}
    publish_json(run.stages_file, {"train": done, "evaluate": done})
    row = only(run, steps=None)  # on what, nobody knows
    assert row.at_least
    publish_json(run.environment, {"world_size": 4, "device": "CPU x86_64"})
    each = {row.unit: row for row in rows(of_runs([run]))}
    assert each["rank"].parts["steps"] == pytest.approx(4 * 7.5 / 3600)
    assert each["rank"].parts["idle"] is None
    assert "evaluate: how many GPUs or CPUs it held was not recorded" in each["GPU"].notes
    publish_json(run.environment, {"world_size": 4, "device": "NVIDIA H100"})
    assert only(run, steps=30, loading=None, lost=None, idle=None).unit == "GPU"


def test_a_run_that_was_begun_before_there_were_times(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    lines = [{"step": step, "step_seconds": 10.0} for step in range(1, 7)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(run, start(DAY + 1000, job="7", restart=1), *marks("load 4 50, step 5 10, step 6 10"))
    each = (("7", "REQUEUED", DAY, 100, 8), ("7", "FAILED", DAY + 990, 100, 8))
    slurm.says("sacct", accounts(*each))
    row = only(run, steps=8 * 60, lost=8 * 50, idle=8 * 30, unknown=8 * 60, loading=0)
    assert row.useful == pytest.approx(60 / 140)
    assert "of its hours steps alone are known" in row.notes[0]


def test_starts_without_times_share_the_steps_that_are_known(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)
    submitted(run, "7")
    run.metrics.write_text('{"step": 1, "step_seconds": 150}\n')
    slurm.says("sacct", accounts(*(("7", "FAILED", DAY + 200 * n, 100, 8) for n in range(3))))
    only(run, steps=8 * 150, unknown=8 * 150, loading=None)


def test_ranks_that_count_more_than_was_given(home: Path, slurm: FakeSlurm) -> None:
    run = a_run(home)  # as one that was suspended
    submitted(run, "7")
    write(run, start(DAY, job="7", gpus=6), *marks("load 0 10, step 1 140"))
    slurm.says("sacct", accounts(("7", "FAILED", DAY, 100, 8)))
    row = only(run, steps=6 * 140, loading=6 * 10, idle=2 * 150)
    assert "its ranks count more seconds than it was given: theirs are taken" in row.notes


def test_a_first_start_that_goes_on_loads_again(home: Path) -> None:
    run = a_run(home)  # copied here with its checkpoints
    write(run, start(DAY, gpus=1), *marks("load 40 10, step 41 5, end 41 0"))
    only(run, lost=10, loading=0, steps=5)


def test_a_training_by_hand_inside_a_job_of_somebody(home: Path) -> None:
    run = a_run(home)
    begun = start(DAY + 5, gpus=2, job="99")
    write(run, begun, *marks("load 0 10, step 1 5"), stage("train", DAY, 30, job="99"))
    only(run, steps=10, loading=2 * 15, idle=20)
    write(run, start(DAY + 50, gpus=2, job="99"), *marks("load 0 1, end 0 0"))
    only(run, steps=0, lost=2 * 5 + 2)


def test_files_that_are_damaged_are_notes(home: Path) -> None:
    run = a_run(home)
    write(run, start(DAY), *marks("load 0 1, end 0 0"))
    run.stages_file.write_text("{")
    run.environment.write_text("[]")
    run.cluster.write_text("nodes: many\n")
    run.starts.write_text("nothing\n")
    said = " ".join(only(run, loading=8).notes)
    assert "stages.json" in said
    assert "cluster.yaml" in said


def test_a_run_that_has_only_begun_has_no_row(home: Path) -> None:
    assert rows(of_runs([a_run(home)])) == []


# Every second in one part.

_WHATS = ("load", "step", "evaluate", "save", "end", "of tomorrow")
_MARKS = st.lists(
    st.builds(
        Mark,
        what=st.sampled_from(_WHATS),
        step=st.integers(0, 9),
        seconds=st.floats(0, 1e5),
    ),
    max_size=8,
)
_STARTS = st.lists(
    st.tuples(
        st.none() | _MARKS,
        st.none() | st.floats(0, 1e6),
        st.integers(0, 16),
        st.sampled_from(("train", "train", "merge")),
        st.floats(0, 100),
    ),
    max_size=5,
)


@given(_STARTS, st.integers(0, 16), st.none() | st.floats(0, 1e5))
def test_parts_add_up_to_what_was_held(each, gpus: int, step_seconds: float | None) -> None:
    starts, held = [], []
    for number, (done, seconds, used, name, head) in enumerate(each):
        mine = None
        if done is not None and name == "train":
            mine = Start(at=DAY + number, gpus=used, cpus=used, marks=done)
            starts.append(mine)
        claim = Claim(stage=name, begun=DAY + number, seconds=seconds, gpus=gpus, cpus=3)
        held.append(Claim(**{**vars(claim), "start": mine, "head": head if mine else 0.0}))
    facts = RunFacts(run="a/b", times=Times(starts=starts), step_seconds=step_seconds, ranks=2)
    for spell, claim in zip(spells(facts, held), held, strict=True):
        assert set(spell.parts) <= set(PARTS)
        assert all(value >= 0 for value in spell.parts.values())
        count = gpus or 3
        whole = (claim.seconds or 0.0) * count
        assert spell.held == pytest.approx(max(whole, spell.held), abs=1e-3)
        done = sum(m.seconds for m in claim.start.marks) + claim.head if claim.start else 0.0
        if claim.seconds is not None and done <= claim.seconds:
            assert spell.held == pytest.approx(whole, abs=1e-3)
    found = spells(facts, held)
    for by in ("run", "experiment", "name", "month"):
        sums = {t.unit: t.allocated for t in totals(found)}
        for unit, whole in sums.items():
            mine = [row for row in rows(found, by) if row.unit == unit]
            assert math.fsum(row.allocated for row in mine) == pytest.approx(whole)
            for row in mine:
                known = math.fsum(value or 0 for value in row.parts.values())
                assert row.allocated == pytest.approx(known)


def test_real_accounts() -> None:
    found = parse((SAID / "sacct_hours.txt").read_text())
    each = [(a.job, a.task, a.raw, a.restart, a.state, a.gpus, a.cpus, a.seconds) for a in found]
    assert each == [
        ("1", "", "1", 0, "REQUEUED", 8, 8, 4.0),
        ("1", "", "1", 1, "RUNNING", 8, 8, 11.0),
        ("5", "", "5", 0, "FAILED", None, 1, 0.0),
        ("2", "0", "6", 0, "COMPLETED", None, 8, 3.0),
        ("2", "1", "7", 0, "COMPLETED", None, 8, 3.0),
        ("2", "2", "2", 0, "COMPLETED", None, 8, 3.0),
    ]
    assert found[0].start == 1795366014
    assert [a.raw for a in found if a.is_of("2")] == ["6", "7", "2"]
    assert [a.raw for a in found if a.is_of("2_1")] == [a.raw for a in found if a.is_of("7")]


@pytest.mark.parametrize("line", ["", "7|7|RUNNING", "7|7|RUNNING|1|2||cpu=1|", "sacct: error: no"])
def test_lines_of_accounts_that_are_none(line: str) -> None:
    assert parse(line) == []
    typed = "7|7|RUNNING by 0|10|Unknown|-3|cpu=4,gres/gpu:a=2,gres/gpu:b=1|\n"
    (one,) = parse(f"{line}\n{typed}")
    assert (one.gpus, one.seconds, one.state) == (3, 0.0, "RUNNING")
