"""How fast commands start: median of 10, each a fresh process.

Run as `python bench/startup.py`; `--record` appends a JSON row to `bench/results.jsonl`. Targets:
0.3 s for `pressroom --help`, 0.4 s for `import pressroom.recipe`, 1 s for `pressroom plan`.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
from record import RESULTS, append, facts

from pressroom.console import entry, say

REPEATS = 10
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "pressroom --help": [str(Path(sys.executable).with_name("pressroom")), "--help"],
    "pressroom plan 70b": [
        str(Path(sys.executable).with_name("pressroom")),
        *("plan", "70b", "--gpus", "8xa100-40"),
    ],
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


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--record", is_flag=True, help="Append a row to bench/results.jsonl.")
def main(record: bool) -> None:
    """Time each command and print it."""
    seconds = {name: round(median_seconds(c), 3) for name, c in COMMANDS.items()}
    for name, median in seconds.items():
        say(f"  {name:28}{median:.3f} s")
    if record:
        append(RESULTS, {"bench": "startup", **facts(), "seconds": seconds})


if __name__ == "__main__":
    entry(main)
