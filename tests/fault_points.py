"""Every call by which a checkpoint reaches the disk, struck once: what `test_fault_points` runs.

    LD_PRELOAD=fault_points.so python tests/fault_points.py HOME LIBRARY

Trains a recipe in HOME. At the second save it forks for every call of the writer, has it killed
there, or the call fail, and looks at what the next start would find; some it really starts.
Writes HOME/found.json. A write is killed half way, and a run of writes to one file is struck at
its first and last.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

COUNT, KILL, FAIL = range(3)
STEP = 4


def explore(home: Path, library: str) -> None:
    """Strike at every call of one save, in a process that has trained up to it."""
    from pressroom.recipe import Recipe
    from pressroom.run_dir import RunDir
    from train import checkpoint, sft
    from train.trainer import RecipeTrainer

    shim = ctypes.CDLL(library)
    save = RecipeTrainer._save_checkpoint
    found: list[dict[str, Any]] = []

    def struck(self: Any, kind: int, at: int, journal: int = -1) -> tuple[int, str]:
        """The exit code of a fork that saves, and what it said."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            folder = str(self.run.checkpoints.absolute()).encode()
            shim.arm(folder, kind, at, errno.ENOSPC, journal)
            try:
                save(self, self.model, None)
            except BaseException as error:
                shim.arm(b"", COUNT, 0, 0, -1)
                os.write(writing, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as said:
            message = said.read().decode()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), message

    def saving(self: Any, model: Any, trial: Any) -> None:
        if self.state.global_step != STEP:
            save(self, model, trial)
            return
        pristine = home / "pristine"
        shutil.copytree(self.run.path, pristine)
        journal = os.open(home / "journal", os.O_CREAT | os.O_RDWR)
        assert struck(self, COUNT, 0, journal) == (0, "")
        calls = (home / "journal").read_text().splitlines()
        for at, call in enumerate(calls):
            if call.startswith("write") and calls[at - 1 : at + 2] == [call] * 3:
                continue
            for kind in (KILL, FAIL):
                shutil.rmtree(self.run.path)
                shutil.copytree(pristine, self.run.path)
                code, message = struck(self, kind, at)
                left = RunDir(home / "left" / f"{at}-{kind}")
                shutil.copytree(self.run.path, left.path)
                checkpoint.clear(self.run)
                newest = checkpoint.newest(self.run)
                found.append(
                    {
                        "call": call,
                        "kind": kind,
                        "code": code,
                        "message": message,
                        "newest": newest.manifest.step if newest else 0,
                        "left": str(left.path),
                    }
                )
        shutil.rmtree(self.run.path)
        shutil.copytree(pristine, self.run.path)
        save(self, model, trial)

    RecipeTrainer._save_checkpoint = saving  # type: ignore[method-assign]
    run = sft.fine_tune(Recipe.load("recipe.yaml"), None, None)
    (home / "found.json").write_text(json.dumps({"run": str(run.path), "points": found}))


def resume(left: str) -> None:
    """Go on from what a strike has left, as the next start does."""
    from pressroom.recipe import Recipe
    from train import sft

    sft.fine_tune(Recipe.load("recipe.yaml"), left, None)


def forked(function: Any, *arguments: Any) -> int:
    """The exit code of a function in a fork of its own."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(home: Path, library: str) -> None:
    """Explore, then start from one of each kind of what was left."""
    import ranks_preload  # noqa: F401

    os.chdir(home)
    assert forked(explore, home, library) == 0
    told = json.loads((home / "found.json").read_text())
    kinds = {(p["call"].split()[0], p["newest"]): p for p in told["points"]}
    for point in kinds.values():
        point["resumed"] = forked(resume, point["left"])
    (home / "found.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
