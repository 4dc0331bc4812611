"""The bench of preparation runs and tells the shape of its figures; never how fast."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import invented_articles, write_jsonl

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def rows(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """The rows of one run of the script, as a person starts it, by item."""
    folder = tmp_path_factory.mktemp("prep")
    articles = write_jsonl(folder / "articles.jsonl", invented_articles(60))
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH / "prep.py"), "--articles", str(articles)),
            *("--tokenizer", str(tokenizer_folder), "--repeats", "1"),
            *("--corpus-mb", "0.01", "--corpus-mb", "0.02", "--rows", str(folder / "rows.jsonl")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines()):
        assert row["bench"] == "prep"
        assert {"hardware", "commit", "date", "command", "load"} <= row.keys()
        assert f"{row['item']}: " in done.stdout
        found.setdefault(row["item"], []).append(row)
    return found


def test_every_item_gives_its_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert list(rows) == ["limit", "trl", "workers", "memory", "packing"]
    for row in [*rows["limit"], *rows["trl"], *rows["workers"]]:
        ratio = row["other_seconds"] / row["seconds"]
        assert row["ratio"] == pytest.approx(ratio, rel=0.05, abs=0.03)
        assert row["ratio_of_core_seconds"] > 0
        assert row["ratio_from_to"][0] <= row["ratio"] <= row["ratio_from_to"][1]


def test_what_is_compared_is_the_same_work(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Ours counts BOS and eos of the 60 articles, TRL's eos, the library alone neither."""
    (first, *_), (theirs, sft) = rows["limit"], rows["trl"]
    assert first["tokens"] == first["other_tokens"] + 2 * 60
    assert [row["other"] for row in rows["trl"]] == ["map", "SFTTrainer"]
    for row in (theirs, sft):
        assert row["tokens"] == first["tokens"]
        assert row["other_tokens"] == first["tokens"] - 60


def test_memory_and_packing_are_told(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [row["corpus_mb"] for row in rows["memory"]] == [0.01, 0.02]
    for row in rows["memory"]:
        assert row["rss_anon_peak_mb"] >= row["rss_anon_start_mb"] > 1
    assert [row["sequence_length"] for row in rows["packing"]] == [2048, 4096]
    assert all(0 < row["full"] <= 1 and row["articles"] == 60 for row in rows["packing"])
