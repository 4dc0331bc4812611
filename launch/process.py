"""Run a launcher of ranks to its end, and hand on what this process is told meanwhile.

It has a process group of its own: to end one by a signal ends the other, launcher and ranks
included. To ask ranks to save and end is another thing: USR2, which the launcher ignores.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import psutil

from pressroom.console import log

ASK = signal.SIGUSR2
"""Asks ranks to save and end; NCCL takes USR1 for itself."""
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    received: list[int]
    """The signals that came meanwhile."""


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    first_asks: bool = False,
    always_ask: Collection[int] = (),
    asked_before: Callable[[], bool] = lambda: False,
    each_second: Callable[[bool], bool] = lambda asked: False,
) -> Ended:
    """Run a command whose output is this process's own.

    Args:
        command: The launcher and its arguments.
        environment: All its variables.
        first_asks: Of the signals that end it, the first only asks its ranks to save and end.
        always_ask: Signals that ask its ranks however often they come.
        asked_before: Whether they were asked to until this took over the signals.
        each_second: Called about every second while it runs, with whether they have been asked;
            when it returns true, they are.
    """
    received: list[int] = []
    asked = False
    # What this process was started to ignore, by nohup or as a background job, it ignores.
    heard = [n for n in _ENDS if signal.getsignal(n) is not signal.SIG_IGN]
    # To be asked ends what cannot be asked, unless this process ignores it or remembers it.
    if first_asks or ASK in always_ask or signal.getsignal(ASK) is signal.SIG_DFL:
        heard.append(ASK)
    before = {n: signal.getsignal(n) for n in heard}
    with subprocess.Popen(
        command,
        env=dict(environment),
        start_new_session=True,
        # The launcher would die of it and leave its ranks behind; ranks listen when they can.
        preexec_fn=lambda: signal.signal(ASK, signal.SIG_IGN),
    ) as process:

        def hand_on(number: int, frame: object) -> None:
            nonlocal asked
            received.append(number)
            if number in always_ask or (first_asks and len(received) == 1):
                if not asked:
                    once_more = "; once more ends it at once" if first_asks else ""
                    log.info("saving at the end of this step, then ending%s", once_more)
                asked = True
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM if number == ASK else number)

        for number in heard:
            signal.signal(number, hand_on)
        asked = asked or asked_before()
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return Ended(process.wait(1), received)
                asked = each_second(asked) or asked
                if asked:
                    _ask(process.pid)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # or leaving the block waits for it
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _ask(launcher: int) -> None:
    """Ask the ranks of a launcher to save and end.

    Again and again: one that has only just started does not listen yet.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        for rank in psutil.Process(launcher).children():
            rank.send_signal(ASK)
