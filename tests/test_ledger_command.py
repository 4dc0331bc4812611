"""`pressroom ledger` as it is typed: its tables, its files, and what a user does wrong."""

import csv
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from ledgers import DAY, a_run, marks, stage, start, write

from pressroom.cli import main
from pressroom.console import UserError
from pressroom.files import publish_json
from pressroom.run_dir import RunDir


def ledger(*arguments: object) -> str:
    """What the command prints."""
    typed = ["ledger", *map(str, arguments)]
    return CliRunner().invoke(main, typed, catch_exceptions=False).output


def refused(*arguments: object) -> list[str]:
    """The lines of its error."""
    with pytest.raises(UserError) as error:
        ledger(*arguments)
    return str(error.value).splitlines()


def trained(home: Path, name: str, days: float, hours: float) -> RunDir:
    """A run on 4 GPUs that loads for a tenth of its hours, and then steps."""
    at = DAY + 86_400 * days
    run = a_run(home, name, at)
    write(run, start(at, gpus=4), *marks(f"load 0 {360 * hours}, step 1 {3240 * hours}, end 1 0"))
    return run


@pytest.fixture
def runs(home: Path) -> list[RunDir]:
    """Three runs in two months, of which two are an experiment; one was merged, too."""
    found = [
        trained(home, "news", 0, 1),
        trained(home, "sweep", 1, 2),
        trained(home, "sweep", 20, 3),
    ]
    write(found[0], stage("merge", DAY + 4000, 3600, gpus=0))
    experiment = home / "experiments" / "lr" / "1"
    publish_json(experiment / "experiment.json", {})  # what it says does not count
    for run, point in zip(found[1:], "ab", strict=True):
        shutil.move(run.path, experiment / point)
    return [found[0], *(RunDir(experiment / point) for point in "ab")]


def test_a_table(runs: list[RunDir]) -> None:
    lines = ledger("--price", 2.5).splitlines()
    assert lines[0] == "GPU-hours"
    parts = ["steps", "evaluation", "loading", "saving", "lost", "idle"]
    assert lines[1].split() == ["run", "allocated", *parts, "useful", "cost"]
    assert {len(line) for line in lines[1:7]} == {len(lines[1])}  # numbers end below each other
    assert [line.split()[0] for line in lines[2:5]] == [run.title for run in reversed(runs)]
    assert set(lines[5]) == {"-"}
    total = ["total", "24.00", "21.60", "0.00", "2.40", "0.00", "0.00", "0.00", "90%", "60.00"]
    assert lines[6].split() == total
    assert lines[7:9] == ["", "CPU-hours"]
    assert lines[10].split() == [f"news/{runs[0].path.name}", "16.00", "16.00"]
    assert len(lines) == 11  # of one row there is no total, and there is nothing to note
    assert max(map(len, lines)) <= 100


def test_rows_by(runs: list[RunDir]) -> None:
    def of_gpus(by: str, *more: str) -> dict[str, str]:
        text = ledger("--by", by, *more).partition("\n\n")[0]
        cells = [line.split("  ") for line in text.splitlines()[2:] if line[0] != "-"]
        return {row[0]: next(cell for cell in row[1:] if cell).strip() for row in cells}

    assert of_gpus("name") == {"lr": "20.00", "news": "4.00", "total": "24.00"}
    assert of_gpus("month") == {"2026-11": "12.00", "2026-12": "12.00", "total": "24.00"}
    each = {"lr/1": "20.00", "(no experiment)": "4.00", "total": "24.00"}
    assert of_gpus("experiment") == each
    assert of_gpus("name", "--since", "2026-12") == {"lr": "12.00"}
    day = f"{datetime.fromtimestamp(DAY):%Y-%m-%d}"
    assert of_gpus("name", "--until", day) == {"news": "4.00"}
    assert "0.25" not in of_gpus("name", "--until", "2026-11-01")


@pytest.mark.parametrize("name", ["lr", "lr/1", "experiments/lr/1", "experiments/lr"])
def test_what_is_named(runs: list[RunDir], name: str) -> None:
    assert "20.00" in ledger(name, name)  # twice is once
    assert "news" not in ledger(name)


def test_folders_of_runs(runs: list[RunDir], home: Path) -> None:
    assert "4.00" in ledger(home / "runs")
    assert "16.00" in ledger(runs[0].path, "lr/1/b").splitlines()[5]


def test_json_and_csv(runs: list[RunDir], home: Path) -> None:
    said = json.loads(ledger("--json", "--csv", "hours.csv", "--price", 2, "--by", "name"))
    assert [(row["key"], row["unit"], row["cost"]) for row in said["rows"]] == [
        ("lr", "GPU", 40.0),
        ("news", "GPU", 8.0),
        ("news", "CPU", None),
    ]
    assert [row["allocated_hours"] for row in said["totals"]] == [24.0, 16.0]
    assert said["rows"][2]["steps_hours"] is None  # of a merge nobody asks
    with (home / "hours.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["allocated_hours"]) for line in lines] == [20.0, 4.0, 16.0]
    assert lines[2]["steps_hours"] == ""


def test_notes_name_their_rows(runs: list[RunDir], home: Path) -> None:
    for n in range(5):
        write(a_run(home, "killed", DAY + n), start(DAY, gpus=1), *marks("load 0 36"))
    lines = ledger("killed").splitlines()
    assert lines[2].split()[1] == "≥0.0100"
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert note.count("killed/") == 3
    assert note.endswith(" and 2 more: a start was killed: counted until it wrote last")


def test_nothing_yet(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="pressroom")
    assert ledger() == ""
    assert "0 runs under" in caplog.text


def test_all_that_is_wrong_is_told_at_once(runs: list[RunDir]) -> None:
    said = refused(
        *("nws", "lrr", "--by", "runs", "--since", "soon", "--until", "2026-13"),
        *("--price", -1, "--csv", "gone/x.csv"),
    )
    assert said[0] == "--by runs: no such rows; did you mean run?"
    assert said[1] == "--price -1: must be 0 or more"
    assert said[2].startswith("--csv gone/x.csv: must be a file")
    assert [line.partition(":")[0] for line in said[3:5]] == ["--since soon", "--until 2026-13"]
    assert "did you mean news?; nor an experiment (lr)" in said[5]
    assert "lrr: no such run" in said[6]
    assert len(said) == 7
    assert refused("--by", "zz")[0].endswith("one of run, experiment, name, month")
    assert "is after" in refused("--since", "2026-12", "--until", "2026-11")[0]
    assert "--price nan: must be 0 or more" in refused("--price", "nan")


def test_users(runs: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = runs[0].path.absolute()
    monkeypatch.setattr(Path, "owner", lambda path: "ada" if path.absolute() == mine else "grace")
    assert "total" not in ledger("--user", "ada").partition("\n\n")[0]
    assert "did you mean ada?" in refused("--user", "adda")[0]
    assert "they are of: ada, grace" in refused("--user", "zz")[0]
