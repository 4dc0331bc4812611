"""The planner beside peaks that others measured; docs/planner.md shows the same table."""

import os
import re
from pathlib import Path

import pytest
from published import FITS, HOST_GB, PEAKS, Published

from pressroom.planner.memory import GIB, gpu_memory, host_bytes, torch_bytes

PAGE = Path(__file__).parents[1] / "docs" / "planner.md"
MARKS = ("<!-- published peaks -->", "<!-- end -->")


def predicted_gib(case: Published) -> float:
    """The step's peak as it was measured: published statistics begin after loading."""
    rows = gpu_memory(case.setup).step
    counted = {
        "driver": sum(rows.values()),
        "reserved": torch_bytes(rows),
        "allocated": torch_bytes(rows) - rows["reserve"],
    }
    return counted[case.how] / GIB


@pytest.mark.parametrize("case", PEAKS, ids=lambda c: f"{c.source.split(',')[0]}: {c.name}")
def test_published_peaks_are_predicted_within_15_percent(case: Published) -> None:
    assert predicted_gib(case) == pytest.approx(case.gib, rel=0.15)


def test_host_memory_of_offloading_is_predicted_within_15_percent() -> None:
    case = next(c for c in PEAKS if "PEFT" in c.source and "offload" in c.name)
    assert host_bytes(case.setup) / 1e9 == pytest.approx(HOST_GB, rel=0.15)


@pytest.mark.parametrize(("name", "setup"), FITS)
def test_what_ran_fits(name: str, setup) -> None:
    # Their loader divides the codes as it reads them.
    peak = gpu_memory(setup.but(loads_on_gpu=False)).peak / GIB
    assert peak <= setup.gpu.memory_gib


def table() -> str:
    """The comparison in Markdown."""
    lines = ["| set-up | published, GiB | predicted | error |", "|---|---|---|---|"]
    source = ""
    for case in PEAKS:
        if case.source != source:
            source = case.source
            lines.append(f"| **{source}** ({case.how}) | | | |")
        predicted = predicted_gib(case)
        error = predicted / case.gib - 1
        lines.append(f"| {case.name} | {case.gib:.2f} | {predicted:.2f} | {error:+.0%} |")
    return "\n".join(lines)


def test_the_page_shows_these_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"{MARKS[0]}\n.*?\n{MARKS[1]}", re.DOTALL)
    written = pattern.sub(lambda _: f"{MARKS[0]}\n{table()}\n{MARKS[1]}", text)
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(written, encoding="utf-8")
        return
    assert pattern.search(text)
    assert written == text, "run `make docs`"
