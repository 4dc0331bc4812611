"""How fast commands start: median of 10, each a fresh process.

Run as `python bench/startup.py`; appends a JSON row to `bench/results.jsonl`. Targets: 0.3 s for
`pressroom --help`, 0.4 s for `import pressroom.recipe`.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from pressroom.console import entry, say

REPEATS = 10
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "pressroom --help": [str(Path(sys.executable).with_name("pressroom")), "--help"],
    "import pressroom.recipe": [sys.executable, "-c", "import pressroom.recipe"],
}


def median_seconds(command: list[str]) -> float:
    """Median wall-clock seconds of a command, after one run that warms the disk's cache."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Time each command, print and append a row."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    seconds = {name: round(median_seconds(c), 3) for name, c in COMMANDS.items()}
    row = {
        "bench": "startup",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "command": "python bench/startup.py",
        "hardware": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "seconds": seconds,
    }
    for name, median in seconds.items():
        say(f"  {name:28}{median:.3f} s")
    with Path(__file__).with_name("results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    entry(main)
