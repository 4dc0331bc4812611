"""The watchdog: ends this rank when a step hangs, saying which, and where it stands.

A rank that ends makes its launcher end the others, so that a hanging job gives its GPUs back.
Off while a checkpoint is read or written, which the process groups' time-outs bound. Knows
nothing of why a step hangs.
"""

import math
import os
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from pressroom.console import last_words

FLOOR_SECONDS = 900.0
TIMES_MEDIAN = 10
_LAUNCHED = "TORCHELASTIC_RUN_ID"


class Watchdog(TrainerCallback):
    """Counts the seconds since the last sign of life: a step's end, a batch of an evaluation."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._step = 0
        self._steps: deque[float] = deque(maxlen=100)
        self._last = math.inf  # off

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this thread for as long as the block runs."""
        ended = threading.Event()
        watched, launcher = threading.get_ident(), os.getppid()

        def watch() -> None:
            while not ended.wait(min(1.0, FLOOR_SECONDS / 4)):
                if _LAUNCHED in os.environ and os.getppid() != launcher:
                    self._die("its launcher has died", watched)
                waited, limit = time.monotonic() - self._last, self.limit()
                if waited > limit:
                    self._die(f"nothing has moved for {waited:.0f} s of {limit:.0f}", watched)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def limit(self) -> float:
        """Seconds after which a step hangs: ten times the median of the last hundred."""
        return max(FLOOR_SECONDS, TIMES_MEDIAN * statistics.median(self._steps or [0.0]))

    def _die(self, why: str, thread: int) -> None:
        stack = "".join(traceback.format_stack(sys._current_frames()[thread])[-12:])
        last_words(f"error: rank {self._rank}, step {self._step + 1}: {why}. It stands at\n{stack}")
        os._exit(1)

    def alive(self) -> None:
        """Tell that something has moved."""
        self._last = time.monotonic()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Do not watch what the block does."""
        self._last = math.inf
        yield
        self.alive()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin: all is loaded."""
        self._step = state.global_step
        self.alive()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember how long the step took."""
        self._step = state.global_step
        self._steps.append(time.monotonic() - self._last)
        self.alive()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self._last = math.inf
