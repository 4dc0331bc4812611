"""Units of work: each done once, by whoever comes first; a dead or slow worker loses nothing."""

import threading
from pathlib import Path

import pytest

from data_prep.work import AllDoneError, Step, Worker
from pressroom.console import UserError
from pressroom.locks import claim, joined


class Log:
    """Units that are done, in order."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def do(self, number: int, folder: Path) -> None:
        """Do one."""
        (folder / "file").write_text(str(number))
        self.done.append(number)


def worker(number: int = 0, count: int = 1, over: bool = False) -> Worker:
    return Worker(number, count, lambda: over, shows=False)


def test_a_unit_is_done_once(tmp_path: Path) -> None:
    log = Log()
    step = Step(tmp_path / "step", 4, log.do)
    worker().complete(step)
    assert log.done == [0, 1, 2, 3]
    worker().complete(step)
    (step.unit(2) / "file").unlink()
    step.unit(2).rmdir()
    worker().complete(step)
    assert log.done == [0, 1, 2, 3, 2]
    assert (step.unit(2) / "file").read_text() == "2"


def test_each_worker_begins_elsewhere(tmp_path: Path) -> None:
    log = Log()
    worker(2, 3).complete(Step(tmp_path / "step", 6, log.do))
    assert log.done == [4, 5, 0, 1, 2, 3]


def test_what_another_holds_is_waited_for(tmp_path: Path) -> None:
    log = Log()
    step = Step(tmp_path / "step", 3, log.do)
    step.folder.mkdir()
    with claim(step.unit(1).with_suffix(".lock")) as held:
        assert held
        thread = threading.Thread(target=worker().complete, args=(step,))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert log.done == [0, 2]
    thread.join(10)
    assert log.done == [0, 2, 1]


def test_nothing_is_done_when_all_is_over(tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(AllDoneError):
        worker(over=True).complete(Step(tmp_path / "step", 3, log.do))
    assert log.done == []


def test_a_unit_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(number: int, folder: Path) -> None:
        (folder / "file").write_text("half")
        raise UserError("no")

    step = Step(tmp_path / "step", 1, fail)
    with pytest.raises(UserError, match="no"):
        worker().complete(step)
    assert [path.name for path in step.folder.iterdir()] == ["00000.lock"]


def test_a_group_is_joined_and_another_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with joined(path, "it", "a"):
        with joined(path, "it", "a"):
            pass
        with (
            pytest.raises(UserError, match="it: another process is at it: a"),
            joined(path, "it", "b"),
        ):
            pass
    with joined(path, "it", "b"):
        assert path.read_text() == "b"
