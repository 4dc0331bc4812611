"""Preemption: a signal asks a run to end early; its ranks agree, save once and end well.

The signal (USR2: NCCL takes USR1) only sets a flag. At the end of a step, and after each batch of
an evaluation, ranks agree by an all-reduce among CPUs, on a group of its own; while the model is
loaded a thread does it, and there is nothing to save. A marker in the run directory says that the
run ended so, for a rank's exit code does not survive the launcher. TERM and INT keep their
meaning: launchers send them to ranks whose peer has died, and those cannot save.

Knows nothing of how to save, nor who sends the signal.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed
from transformers import TrainerCallback

from pressroom.console import last_words, log
from pressroom.files import publish_json
from pressroom.run_dir import RunDir

SIGNAL = signal.SIGUSR2
POLL_SECONDS = 0.5


class Preemption(TrainerCallback):
    """Whether this run was asked to end early. Ends a training at the end of its step."""

    def __init__(self) -> None:
        self._asked = False
        self._group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the signal for as long as the block runs."""
        before = signal.signal(SIGNAL, self._hear)
        signal.siginterrupt(SIGNAL, False)  # calls of libraries go on as if nothing had been
        try:
            yield
        finally:
            signal.signal(SIGNAL, before)

    def _hear(self, number: int, frame: object) -> None:
        self._asked = True

    def join(self, ranks: PartialState) -> None:
        """Make the group on which ranks agree; every rank calls it."""
        if ranks.num_processes > 1:
            self._group = distributed.new_group(backend="gloo")

    def agreed(self) -> bool:
        """Whether any rank was asked; every rank calls it, and gets the same answer."""
        agreed = self._any(self._asked)[0]
        if agreed:  # else the signal may have come while the ranks agreed: it stays
            self._asked = True
        return agreed

    def _any(self, *mine: bool) -> list[bool]:
        """Of each answer, whether any rank gives it."""
        if self._group is None:
            return list(mine)
        answers = torch.tensor(mine, dtype=torch.int32)
        distributed.all_reduce(answers, distributed.ReduceOp.MAX, group=self._group)
        return answers.bool().tolist()

    @contextmanager
    def ends_loading(self, run: RunDir, step: int) -> Iterator[None]:
        """End the process with 0, and the marker, when any rank is asked while the block runs.

        Args:
            run: The run directory.
            step: From which the run would have gone on.
        """
        loaded = threading.Event()
        thread = threading.Thread(target=self._watch, args=(run, step, loaded), daemon=True)
        thread.start()
        yield
        loaded.set()
        thread.join()  # when all ranks have loaded

    def _watch(self, run: RunDir, step: int, loaded: threading.Event) -> None:
        try:
            while True:
                asked, loading = self._any(self._asked, not loaded.is_set())
                if asked:
                    self.mark(run, step)
                    sys.stderr.flush()
                    os._exit(0)
                if not loading:
                    return
                loaded.wait(POLL_SECONDS)
        except RuntimeError:
            return  # another rank has died; the launcher ends this one
        except OSError as error:
            last_words(f"error: {error}")
            os._exit(1)

    def mark(self, run: RunDir, step: int) -> None:
        """Leave the marker, from one rank; every rank calls it, and goes on when it is there."""
        if self._group is None or distributed.get_rank() == 0:
            log.info("asked to end: the same command goes on from step %d", step)
            publish_json(run.preempted, {"step": step})
        self._any(True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and end here, if asked; an evaluation of this step is made at the next start."""
        if self.agreed():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
