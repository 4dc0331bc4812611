"""Files are complete or invisible."""

import errno
import fcntl
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pressroom.console import UserError
from pressroom.files import publish_folder, publish_json, publish_text
from pressroom.locks import is_locked, lock


def test_publish_text_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    publish_text(path, "one")
    publish_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with publish_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"


def test_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with publish_folder(target) as partial:
        (partial / "a").write_text("old")

    def fail() -> None:
        with publish_folder(target) as partial:
            (partial / "a").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_json_is_utf8(tmp_path: Path) -> None:
    publish_json(tmp_path / "a.json", {"title": "été"})
    assert "été" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".out.partial-{host}-{dead.pid}").mkdir()
    (tmp_path / f".out.partial-{host}-1").mkdir()
    (tmp_path / ".out.partial-elsewhere-7").mkdir()
    with publish_folder(tmp_path / "out"):
        pass
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"out", f".out.partial-{host}-1", ".out.partial-elsewhere-7"}


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    def hold() -> None:
        with lock(tmp_path / "l", "run"):
            pass

    with lock(tmp_path / "l", "run"), pytest.raises(UserError, match="run: another process"):
        hold()
    hold()


def test_who_holds_a_lock_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l"
    assert not is_locked(path)
    with lock(path, "run"):
        assert is_locked(path)
    with lock(path, "run", shared=True):
        assert is_locked(path)
    assert not is_locked(path)

    def as_nfs_does(file: Any, kind: int) -> None:
        if fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & 3 == 0:  # open for reading alone
            raise OSError(errno.EBADF, "Bad file descriptor")
        raise BlockingIOError(errno.EAGAIN, "held on another node")

    monkeypatch.setattr(fcntl, "flock", as_nfs_does)
    assert is_locked(path)

    def nowhere(file: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", nowhere)
    assert not is_locked(path)
