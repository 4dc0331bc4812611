"""One log file a rank: what it writes to standard output and error, over all starts.

`begin` is called before torch is imported, so that the file also has what fails there. Knows
nothing of who reads the file.
"""

import faulthandler
import os
import socket
import sys
from datetime import datetime
from pathlib import Path

from pressroom.run_dir import rank_log

FOLDER = "PRESSROOM_RANK_LOGS"
"""Environment: the folder of these files. Without it a rank writes where its launcher does."""


def begin() -> None:
    """From here on this process, its native libraries included, writes to its rank's file.

    Pressroom's own lines are redacted as everywhere; what a library writes past them is not.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    path = rank_log(Path(folder), int(os.environ.get("RANK", "0")))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(f"--- {_start()}\n".encode())
            file.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    except OSError as error:
        sys.stderr.write(f"{path}: {error.strerror}: this rank writes here instead\n")
        return
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()  # the last words of a crash in a native library


def _start() -> str:
    """When, where and as what this process starts."""
    told = [datetime.now().astimezone().isoformat(timespec="seconds"), f"on {host_name()}"]
    if job := os.environ.get("SLURM_JOB_ID"):
        told += [f"job {job}", f"restart {os.environ.get('SLURM_RESTART_COUNT', '0')}"]
    return " ".join(told)


def host_name() -> str:
    """What this node is called: by SLURM, else by itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
