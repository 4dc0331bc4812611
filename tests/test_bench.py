"""The training bench runs on a CPU with a tiny model: it is known to work when a card is there."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pressroom.geometry import SIZES

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import table  # noqa: E402
from breakdown import class_of  # noqa: E402
from stacks import Variant  # noqa: E402
from train_gpu import flops_per_token  # noqa: E402

VARIANTS = ("trl:1:full", "trl:2:none", "pressroom:1:full", "pressroom:2:none")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of one run of the script, as a person starts it."""
    out = tmp_path_factory.mktemp("bench") / "rows.jsonl"
    options = [part for variant in VARIANTS for part in ("--variant", variant)]
    start = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH / "train_gpu.py"), "--geometry", "tiny", "--profile"),
            *("--sequence-length", "128", "--article-tokens", "40", "--steps", "3"),
            *("--warmup", "1", "--rows", str(out), *options),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    assert all(variant in done.stdout for variant in VARIANTS)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_variant_gives_a_row_with_its_figures(rows: list[dict[str, Any]]) -> None:
    assert [row["variant"] for row in rows] == [
        f"{variant}:{'sdpa' if 'trl' in variant else 'auto'}" for variant in VARIANTS
    ]
    for row in rows:
        assert row["bench"] == "train_gpu"
        assert (row["steps"], row["geometry"]) == (3, "tiny")
        assert row["tokens_per_second"] == pytest.approx(
            row["tokens_per_step"] / row["step_seconds"], rel=1e-2
        )
        assert 0 < row["mfu"] <= row["hfu"]
        assert sum(row["time_by_kernel"].values()) == pytest.approx(1, abs=0.01)
        classes = {"matmul"}
        if row["variant"].startswith("trl"):  # ours attends by products, and dequantized before
            classes |= {"attention", "dequantize"}
        assert classes <= row["time_by_kernel"].keys()
        assert {"hardware", "torch", "commit", "date", "command"} <= row.keys()


def test_losses_are_those_of_a_model_that_knows_nothing(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["loss"] == pytest.approx(math.log(512), abs=0.1)


def test_flops_are_those_of_the_formulas() -> None:
    geometry = SIZES["7b"]
    weights = geometry.num_linear_weights + geometry.num_head_weights
    attention = 2048 * 4096 * 32
    found = flops_per_token(geometry, [2048, 2048], "full")
    assert found["model"] == 4 * weights + 6 * attention
    assert found["executed"] == 6 * weights + 9 * attention
    assert flops_per_token(geometry, [2048], "none")["executed"] == 4 * weights + 7 * attention
    # One long article and short ones: what attends is the mean of squares over the mean.
    mixed = flops_per_token(geometry, [3000, 1000], "none")["model"]
    assert mixed == pytest.approx(4 * weights + 6 * 2500 * 4096 * 32)


def test_a_variant_is_read_or_told() -> None:
    assert Variant.parse("trl:8") == Variant("trl", 8)
    assert Variant.parse("pressroom:4:none") == Variant("pressroom", 4, "none")
    for text in ("trl", "axolotl:1", "trl:x", "trl:1:half", "trl:1:full:sdpa:all:more"):
        with pytest.raises(ValueError, match=text):
            Variant.parse(text)


def test_kernels_are_told_apart() -> None:
    names = {
        "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>": "dequantize",
        "void pytorch_flash::flash_fwd_kernel<...>": "attention",
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN": "matmul",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "matmul",
        "void at::native::vectorized_elementwise_kernel<4, ...>": "elementwise",
        "void multi_tensor_apply_kernel<...>": "optimizer",
        "Memcpy DtoD (Device -> Device)": "copy",
        "something else": "other",
    }
    assert {name: class_of(name) for name in names} == names


def test_the_table_is_made_from_rows() -> None:
    common = {
        "bench": "train_gpu",
        "geometry": "7b",
        "sequence_length": 2048,
        "hardware": "NVIDIA H200",
        "date": "2026-11-22T10:00:00+00:00",
        "commit": "abc1234",
        "command": "x",
    }
    figures = {"mfu": 0.5, "hfu": 0.6, "peak_memory_gib": 40.04}
    rows = [
        {**common, "variant": "trl:1:full:sdpa", "tokens_per_second": 1000.0, **figures},
        {**common, "variant": "trl:8:full:sdpa", "error": "out of memory"},
        {
            **common,
            "variant": "pressroom:8:none:sdpa",
            "tokens_per_second": 1500.0,
            **figures,
            "predicted_tokens_per_second": 1400.0,
            "predicted_peak_memory_gib": 41.0,
        },
    ]
    page = "before\n<!-- bench/train_gpu -->\nold\n<!-- end -->\nafter\n"
    found = table.fill(page, rows).splitlines()
    assert found[0] == "before"
    assert found[-1] == "after"
    assert found[4:7] == [
        "| 7b | trl:1:full:sdpa | 1,000 |  | 1.00 | 50.0% | 60.0% | 40.0 |  | NVIDIA H200 "
        "| 2026-11-22 | abc1234 |",
        "| 7b | trl:8:full:sdpa | out of memory |  |  |  |  |  |  | NVIDIA H200 | 2026-11-22 "
        "| abc1234 |",
        "| 7b | pressroom:8:none:sdpa | 1,500 | 1,400 | 1.50 | 50.0% | 60.0% | 40.0 | 41.0 "
        "| NVIDIA H200 | 2026-11-22 | abc1234 |",
    ]
    assert table.fill(page, []).splitlines()[2] == "Nothing was measured yet."


def test_the_page_holds_what_the_rows_say() -> None:
    recorded = [json.loads(line) for line in table.ROWS.read_text().splitlines()]
    page = table.PAGE.read_text(encoding="utf-8")
    assert "<!-- bench/train_gpu -->" in page
    assert table.fill(page, recorded) == page
