"""One rank's training with a fault at a chosen moment: what the tests of faults run on ranks.

A moment is an event: its step, what happens, and the how-manieth of its kind in that step. An
undisturbed run tells all of them, so that a test draws one by lot, and no test waits for a time.
"""

import os
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Event(NamedTuple):
    """A moment of a run."""

    step: int
    """Steps that are finished."""
    what: str
    saving: bool
    nth: int


class Fault(NamedTuple):
    """What happens to one rank."""

    rank: int
    event: Event
    kind: str
    """kill, ask (USR2), nan, hang, or full (no file may grow)."""


_seen: Counter[tuple[int, str, bool]] = Counter()
_events: list[Event] = []
_step, _saving = 0, False


def faulty_training(
    home: str, overrides: tuple[str, ...], run: str | None, fault: Fault | None = None
) -> dict[str, Any]:
    """Fine-tune `home/recipe.yaml`, meeting a fault; the run and the events of this rank.

    What the rank writes to standard error goes to `home/rank-N.txt`.
    """
    os.chdir(home)
    os.environ["PRESSROOM_HOME"] = home
    rank = int(os.environ["RANK"])
    with Path(f"rank-{rank}.txt").open("wb") as file:
        os.dup2(file.fileno(), 2)
    from data_prep.prepare import prepare
    from pressroom import console
    from pressroom.recipe import Recipe
    from train import sft

    console.set_up_logging()
    _listen(fault if fault and fault.rank == rank else None)
    recipe = Recipe.load("recipe.yaml", overrides)
    finished = sft.fine_tune(recipe, run, str(prepare(recipe)))
    return {"run": str(finished.path), "events": _events}


def _listen(fault: Fault | None) -> None:
    """Have every event noted, and the fault happen at its own."""
    from train import checkpoint, watchdog
    from train import model as model_builder
    from train.trainer import RecipeTrainer

    def note(what: str) -> None:
        key = (_step, what, _saving)
        _seen[key] += 1
        event = Event(*key, _seen[key])
        _events.append(event)
        if fault and event == fault.event:
            _strike(fault.kind)

    def noted(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            global _step
            if isinstance(arguments[0] if arguments else None, RecipeTrainer):
                _step = arguments[0].state.global_step
            note(what)
            found = original(*arguments, **keywords)
            return found * float("nan") if _is_nan(fault, _events, what) else found

        setattr(owner, name, wrapped)

    noted(model_builder, "build", "load")
    noted(model_builder, "with_adapters", "adapters")
    noted(RecipeTrainer, "training_step", "forward")
    noted(RecipeTrainer, "compute_loss", "loss")
    noted(RecipeTrainer, "_get_grad_norm", "gradient")
    noted(RecipeTrainer, "log", "log")
    noted(RecipeTrainer, "evaluate", "evaluate")
    noted(RecipeTrainer, "leaves_evaluation", "evaluated a batch")
    noted(checkpoint, "sha256_file", "hash")
    noted(torch, "save", "torch.save")
    noted(os, "fsync", "fsync")
    save = RecipeTrainer._save_checkpoint

    def saving(self: Any, *arguments: Any) -> None:
        global _saving, _step
        _step, _saving = self.state.global_step, True
        note("begin")
        save(self, *arguments)
        note("end")
        _saving = False

    RecipeTrainer._save_checkpoint = saving  # type: ignore[method-assign]

    def audited(name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") and _saving:
            note(name)
        elif name == "open" and _saving and arguments[1] and set(str(arguments[1])) & set("wax"):
            note("open")

    sys.addaudithook(audited)
    if fault and fault.kind == "hang":
        watchdog.FLOOR_SECONDS = 2.0


def _strike(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "ask":
        os.kill(os.getpid(), signal.SIGUSR2)
    elif kind == "hang":
        time.sleep(100)
    elif kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))


def _is_nan(fault: Fault | None, events: list[Event], what: str) -> bool:
    return bool(
        fault and fault.kind == "nan" and what == fault.event.what and events[-1] == fault.event
    )
