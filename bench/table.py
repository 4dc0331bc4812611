"""The tables of docs/results.md, from the JSON rows: `python bench/table.py`.

What stands between `<!-- bench/NAME -->` and `<!-- end -->` is written anew from the rows of that
bench; the rest of the page is left alone. Only what was measured gets a line.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pressroom.console import entry, say
from pressroom.files import publish_text

Row = dict[str, Any]
HERE = Path(__file__).parent
ROWS = HERE / "results.jsonl"
PAGE = HERE.parent / "docs" / "results.md"


def train_table(rows: Iterable[Row]) -> str:
    """Tokens/s of each variant, and as a multiple of the plain stack's best of the same run."""
    names = ["model", "variant", "tokens/s", "predicted", "of plain's best", "MFU", "HFU"]
    names += ["peak GiB", "predicted", "hardware", "date", "commit"]
    kept = list(rows)
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}"
    return "\n".join([head, *(_train_line(row, _plain_best(row, kept)) for row in kept)])


def _plain_best(row: Row, rows: Iterable[Row]) -> float | None:
    """The plain stack's best figure of the same run: measured by the same command at one commit."""
    same = ("geometry", "sequence_length", "hardware", "commit", "command", "run")
    speeds = [
        other["tokens_per_second"]
        for other in rows
        if other["variant"].startswith("trl:")
        and "tokens_per_second" in other
        and all(other.get(key) == row.get(key) for key in same)
    ]
    return max(speeds, default=None)


def _train_line(row: Row, plain: float | None) -> str:
    if "error" in row:
        figures = [row["error"], "", "", "", "", "", ""]
    else:
        speed = row["tokens_per_second"]
        memory = row["peak_memory_gib"]
        figures = [
            f"{speed:,.0f}",
            _told(row.get("predicted_tokens_per_second"), ",.0f"),
            f"{speed / plain:.2f}" if plain else "",
            f"{row['mfu']:.1%}",
            f"{row['hfu']:.1%}",
            _told(memory, ".1f"),
            _told(row.get("predicted_peak_memory_gib"), ".1f"),
        ]
    facts = [
        str(row.get("hardware", "")),
        str(row.get("date", ""))[:10],
        str(row.get("commit", "")),
    ]
    return f"| {' | '.join([row['geometry'], row['variant'], *figures, *facts])} |"


def _told(figure: float | None, form: str) -> str:
    return "" if figure is None else format(figure, form)


def side_by_side_table(rows: Iterable[Row]) -> str:
    """Each variant's tokens/s, and how many times as fast as the first of its run it was."""
    lines = [
        f"| {row['precision']} | {row['variant']} | {row['tokens_per_second']:,.0f} | "
        f"{row['ratio']:.2f} | {row['ratio_of_core_seconds']:.2f} | {row['load'][0]} | "
        f"{row['commit']} |"
        for row in rows
    ]
    names = ("precision", "variant", "tokens/s", "ratio", "by time on a core", "load", "commit")
    return "\n".join([f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *lines])


def host_table(rows: Iterable[Row]) -> str:
    """The newest row of each item, in words."""
    newest = {(row["item"], row.get("save")): row for row in rows}
    lines = ["| what | figure |", "|---|---|"]
    for (item, save), row in newest.items():
        if item == "loader":
            rate = f"{row['tokens_per_core_second']:,}"
            lines.append(f"| loader and collator, tokens/s of one core | {rate} |")
            lines.append(f"| the same, of the 160,000 of 8 ranks | {row['ratio_to_a_node']} |")
        elif item == "step":
            layers = "plain" if save == "plain" else "lean"
            lines.append(
                f"| host time of a layer in a step, {layers} layers | {row['layer_ms']} ms, "
                f"{row['ratio_to_gpu']} of an H200's predicted for 8,192 tokens at 7B |"
            )
            lines.append(f"| the same, once a step | {row['step_ms']} ms |")
        else:
            told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["seconds"].items())
            lines.append(f"| launch to the end of step 1 | {row['total_seconds']:.1f} s: {told} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[Iterable[Row]], str]] = {
    "train_gpu": train_table,
    "side_by_side": side_by_side_table,
    "host": host_table,
}


def fill(page: str, rows: Iterable[Row]) -> str:
    """A page with its tables made anew from rows."""
    kept = list(rows)
    for name, make in TABLES.items():
        of_bench = [row for row in kept if row["bench"] == name]
        body = make(of_bench) if of_bench else "Nothing was measured yet."
        pattern = rf"(<!-- bench/{name} -->\n).*?(<!-- end -->)"
        told = body.replace("\\", r"\\")
        page = re.sub(pattern, rf"\g<1>{told}\n\g<2>", page, flags=re.DOTALL)
    return page


def main() -> None:
    """Write the tables into docs/results.md."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    publish_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), rows))
    say(str(PAGE))


if __name__ == "__main__":
    entry(main)
