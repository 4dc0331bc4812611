"""Tasks that prepare one dataset together, each a process of its own that can be killed.

They are forked from the server of `ranks.py`: a process has only one.
"""

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from ranks import CONTEXT, start_server

from pressroom.console import UserError, redact
from pressroom.recipe import Recipe


def start(
    recipe: Recipe, home: Path, *, unit_bytes: int, count: int = 1, group: str = "job 1"
) -> list[BaseProcess]:
    """Start all tasks of a group; exit code 3 is a user's error, in home's `told`."""
    start_server()
    found: list[BaseProcess] = []
    for number in range(count):
        arguments = (recipe, home, unit_bytes, group, (number, count))
        found.append(CONTEXT.Process(target=_task, args=arguments))
        found[-1].start()
    return found


def _task(recipe: Recipe, home: Path, unit_bytes: int, group: str, task: tuple[int, int]) -> None:
    from data_prep.prepare import prepare

    os.environ["PRESSROOM_HOME"] = str(home)
    os.chdir(home)
    try:
        prepare(recipe, group=group, task=task, unit_bytes=unit_bytes)
    except UserError as error:
        (home / "told").write_text(redact(str(error)))
        sys.exit(3)


def to_end(tasks: list[BaseProcess]) -> list[int | None]:
    """Wait for tasks; their exit codes."""
    for task in tasks:
        task.join(60)
    return [task.exitcode for task in tasks]
