"""The bench of levers runs, counts what is known, and its table says what its rows say."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import levers  # noqa: E402
import levers_counted  # noqa: E402
import table  # noqa: E402
from side_by_side import geometry  # noqa: E402
from stacks import Variant  # noqa: E402


def test_a_lever_takes_turns_with_the_same_trainer_without_it(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    options = ("--item", "loss", "--steps", "2", "--hidden", "64", "--layers", "1")
    levers.main.main([*options, "--rows", str(out)], standalone_mode=False)
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    assert (row["bench"], row["item"], row["lever"]) == ("levers", "loss", "chunked loss")
    assert row["loss"] == pytest.approx(row["loss_beside"], abs=2e-3)
    assert row["ratio"] > 0
    assert row["ratio_of_core_seconds"] > 0


def test_every_case_is_a_variant_that_differs_from_what_is_off() -> None:
    for name, ((_, off), cases) in levers.GROUPS.items():
        for case in cases:
            assert str(Variant.parse(case.variant))
            is_same = Variant.parse(case.variant) == Variant.parse(off)
            assert not is_same or case.change or name in levers.OFF, case


def test_bytes_kept_are_those_of_the_planners_formula() -> None:
    width, inner, r = 64, 176, 16
    none, full = (
        levers_counted.kept_of(f"pressroom:1:{mode}:blocks", geometry(width, 1))
        for mode in ("none", "full")
    )
    assert none == pytest.approx(2 * (6 * width + 2 * inner + 7 * r) + 8, abs=2)
    state_of_random_numbers = 5056 / 512  # which each checkpoint keeps
    assert full == pytest.approx(2 * width + state_of_random_numbers, abs=1)


def test_one_wait_a_step_and_the_plain_stack_waits_in_each_micro_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(levers_counted, "STEPS", 2)
    (row,) = levers_counted.waits(geometry(64, 1))
    ours, _, plain = row["more"].split(" ")[:3]
    assert float(ours) == 1
    assert float(plain) >= 4


def test_the_peak_is_the_most_that_lives_at_a_time() -> None:
    def call() -> None:
        first = torch.ones(1000)
        del first
        torch.ones(500)

    assert levers_counted.peak(call) == 4000


def test_overrides_are_read_and_refused_where_there_is_no_recipe() -> None:
    text = "pressroom:1:none:blocks:plain+lora.r=8+seed=3"
    variant = Variant.parse(text)
    assert (variant.save, variant.overrides) == ("plain", ("lora.r=8", "seed=3"))
    assert str(variant) == text
    with pytest.raises(ValueError, match="trl has no recipe"):
        Variant.parse("trl:1:none+lora.r=8")


def test_the_newest_row_of_a_lever_is_in_the_table() -> None:
    row = {"lever": "L", "beside": "B", "predicted": "1.1", "more": "m", "load": [2.0]}
    old = {**row, "ratio": 1.0, "ratio_of_core_seconds": 1.0, "commit": "a"}
    new = {**row, "ratio": None, "ratio_of_core_seconds": 1.234, "commit": "b"}
    lines = table.levers_table([old, new]).splitlines()
    assert lines[2:] == ["| L | B | 1.1 | 1.23 |  | m | 2.0 | b |"]
