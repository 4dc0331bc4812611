"""Any number of workers, killed at any moment, make the same bytes."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import prep_tasks
import psutil
import pytest
from conftest import invented_articles
from disks import fill

from data_prep import steps
from data_prep.finish import finish
from data_prep.job import Job
from data_prep.prepare import prepare
from data_prep.scan import scan
from data_prep.shards import Written, write_shard
from pressroom.console import UserError
from pressroom.dataset import Manifest
from pressroom.locks import joined
from pressroom.recipe import Recipe

UNIT_BYTES = 8000


def bytes_of(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture
def recipe(make_recipe) -> Recipe:
    """Articles of which some are copies, nearly copies, too long for a row, or none at all."""
    articles: list = invented_articles(200)
    for number in range(0, 200, 10):
        near = dict(articles[number], url=f"https://other.example/{number}")
        near["description"] = near["description"].replace("the", "a", 1) + " More."
        articles += [articles[number], near, {"title": "no description"}]
    articles.append({"title": "Long", "description": "storm river fire " * 200})
    return make_recipe(articles=articles)


@pytest.fixture
def expected(recipe: Recipe, home: Path) -> dict[str, str]:
    """What one undisturbed process makes of it; the dataset itself is away."""
    folder = prepare(recipe, unit_bytes=UNIT_BYTES)
    manifest = Manifest.read(folder)
    assert len(manifest.shards) > 4
    assert {"duplicate url", "near duplicate", "no description"} <= manifest.counts[
        "rejected"
    ].keys()
    found = bytes_of(folder)
    shutil.rmtree(folder)
    return found


def made(recipe: Recipe) -> dict[str, str]:
    """The files of the recipe's dataset; nothing else is left of making it."""
    folder = Job.of(recipe).folder
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    return bytes_of(folder)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_tasks_makes_the_same_bytes(
    count: int, recipe: Recipe, expected: dict[str, str], home: Path
) -> None:
    tasks = prep_tasks.start(recipe, home, unit_bytes=UNIT_BYTES, count=count)
    assert prep_tasks.to_end(tasks) == [0] * count
    assert made(recipe) == expected


def test_killed_at_random_moments_it_goes_on(
    recipe: Recipe, expected: dict[str, str], home: Path
) -> None:
    source = random.Random(8)
    began = time.monotonic()
    assert prep_tasks.to_end(prep_tasks.start(recipe, home, unit_bytes=UNIT_BYTES)) == [0]
    whole = time.monotonic() - began
    folder = Job.of(recipe).folder
    midway = 0
    for kill in range(20):
        shutil.rmtree(folder)
        tasks = prep_tasks.start(recipe, home, unit_bytes=UNIT_BYTES, count=1 + kill % 2)
        time.sleep(source.uniform(0, whole))
        for task in tasks:
            task.kill()
        prep_tasks.to_end(tasks)
        midway += not folder.is_dir()
        assert not folder.is_dir() or bytes_of(folder) == expected
        again = prep_tasks.start(recipe, home, unit_bytes=UNIT_BYTES, group="job 2")
        assert prep_tasks.to_end(again) == [0]
        assert made(recipe) == expected
    assert midway >= 10


def test_a_full_disk_is_said_and_when_there_is_room_it_goes_on(
    recipe: Recipe, expected: dict[str, str], home: Path, small_disk: Path, monkeypatch
) -> None:
    (small_disk / "articles.jsonl").write_bytes((home / "articles.jsonl").read_bytes())
    monkeypatch.setenv("PRESSROOM_HOME", str(small_disk))
    job = Job.of(recipe, UNIT_BYTES)
    make_room: list[Callable[[], None]] = []

    def full(*arguments: object) -> Written:
        if len(list(job.units.glob("pack/*/shard.arrow"))) == 2:
            make_room.append(fill(small_disk, 2**12))
        return write_shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_shard", full)
        with pytest.raises(UserError, match=r"No space left on device|File too large") as caught:
            prepare(recipe, unit_bytes=UNIT_BYTES)
    assert "what is finished is kept" in str(caught.value)
    assert not job.folder.exists()
    assert sorted(path.name for path in job.units.glob("pack/*/")) == ["00000", "00001"]
    make_room[0]()
    prepare(recipe, unit_bytes=UNIT_BYTES)
    assert made(recipe) == expected


def test_two_runs_on_one_output(recipe: Recipe, expected: dict[str, str], home: Path) -> None:
    job = Job.of(recipe)
    with joined(job.lock, "it", "process 7 on elsewhere"):
        [task] = prep_tasks.start(recipe, home, unit_bytes=UNIT_BYTES)
        assert prep_tasks.to_end([task]) == [3]
        told = (home / "told").read_text()
        assert told == f"{job.folder}: another process is at it: process 7 on elsewhere"
        [friend] = prep_tasks.start(
            recipe, home, unit_bytes=UNIT_BYTES, group="process 7 on elsewhere"
        )
        assert prep_tasks.to_end([friend]) == [0]
        assert job.lock.is_file()  # somebody may still be at it
    prepare(recipe)
    assert made(recipe) == expected


def test_a_file_that_is_written_to_meanwhile(recipe: Recipe, home: Path, monkeypatch) -> None:
    written = []

    def scan_and_write(*arguments: object) -> int:
        count = scan(*arguments)
        if not written:
            with (home / "articles.jsonl").open("a") as file:
                written.append(file.write(json.dumps({"title": "T", "description": "D"}) + "\n"))
        return count

    monkeypatch.setattr(steps, "scan", scan_and_write)
    with pytest.raises(UserError, match=r"articles.jsonl: has changed while it was read: when"):
        prepare(recipe, unit_bytes=UNIT_BYTES)
    again = prepare(recipe, unit_bytes=UNIT_BYTES)
    assert Manifest.read(again).counts["read"] == 262
    assert [path.name for path in again.parent.glob("[!.]*")] == [again.name]


def test_a_late_task_leaves_the_others_their_work(
    recipe: Recipe, expected: dict[str, str], home: Path, monkeypatch
) -> None:
    """A task comes when the dataset is there, and the one that made it has not ended."""
    job = Job.of(recipe)
    late: list[list[int | None]] = []

    def finish_and_wait(*arguments: object) -> None:
        finish(*arguments)
        [task] = prep_tasks.start(recipe, home, unit_bytes=UNIT_BYTES, group="a")
        late.append(prep_tasks.to_end([task]))
        assert job.lock.is_file()

    monkeypatch.setattr(steps, "finish", finish_and_wait)
    prepare(recipe, unit_bytes=UNIT_BYTES, group="a")
    assert late == [[0]]
    assert made(recipe) == expected


def interrupted(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare up to the first shard."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe, unit_bytes=UNIT_BYTES)


def test_half_cleared_work_is_none(recipe: Recipe, expected: dict[str, str], monkeypatch) -> None:
    def killed(path: Path, **_: object) -> None:
        if path.is_dir() and path.suffix == ".old":
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            prepare(recipe, unit_bytes=UNIT_BYTES)
    job = Job.of(recipe, UNIT_BYTES)
    assert not job.work.exists()
    shutil.rmtree(job.folder)
    prepare(recipe, unit_bytes=UNIT_BYTES)
    assert made(recipe) == expected


def test_what_another_recipe_of_the_name_has_begun_stays(recipe: Recipe, monkeypatch) -> None:
    interrupted(recipe, monkeypatch)
    other = Recipe.load("recipe.yaml", ["sequence_length=64"])
    prepare(other, unit_bytes=UNIT_BYTES)
    assert list(Job.of(recipe, UNIT_BYTES).units.glob("scan/*/records.arrow"))


def test_articles_under_another_name_begin_anew(recipe: Recipe, home: Path, monkeypatch) -> None:
    interrupted(recipe, monkeypatch)
    (home / "articles.jsonl").rename(home / "moved.jsonl")
    moved = Recipe.load("recipe.yaml", ["data.articles=[moved.jsonl]"])
    folder = prepare(moved, unit_bytes=UNIT_BYTES)
    assert "moved.jsonl:" in (folder / "rejects.jsonl").read_text()


def test_helpers_end_with_the_command_and_it_goes_on(
    recipe: Recipe, expected: dict[str, str], home: Path
) -> None:
    script = (
        "from data_prep.prepare import prepare\n"
        "from pressroom.recipe import Recipe\n"
        "if __name__ == '__main__':\n"
        f"    prepare(Recipe.load('recipe.yaml'), num_workers=2, unit_bytes={UNIT_BYTES})\n"
    )
    (home / "run.py").write_text(script)
    process = subprocess.Popen([sys.executable, "run.py"])
    job = Job.of(recipe, UNIT_BYTES)
    while not list(job.units.glob("scan/*/records.arrow")):
        assert process.poll() is None
        time.sleep(0.01)
    helpers = [
        p for p in psutil.Process(process.pid).children() if "spawn_main" in str(p.cmdline())
    ]
    assert helpers
    process.kill()
    process.wait()
    assert psutil.wait_procs(helpers, timeout=10)[1] == []
    subprocess.run([sys.executable, "run.py"], check=True, timeout=60)
    assert made(recipe) == expected
