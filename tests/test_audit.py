"""Each fault of a dataset is found, with its row; a good one has none."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from by_hand import Row, long_article, read_rows, rewrite
from conftest import invented_articles

from data_prep.audit import audit
from data_prep.prepare import prepare
from pressroom import dataset
from pressroom.dataset import IGNORE, Manifest
from pressroom.tokenizer import ArticleTokenizer


def verdicts(folder: Path) -> dict[str, str]:
    """Claim, by its first words, -> where it is false, for all that are."""
    manifest = Manifest.read(folder)
    tokenizer = ArticleTokenizer(folder / dataset.TOKENIZER)
    _, found = audit(folder, manifest, tokenizer)
    return {v.claim: f"{v.first} ({v.faults})" for v in found if v.faults}


def on(number: int, **changes: Callable[[list[int]], Any]) -> Callable[[list[Row]], None]:
    """Change columns of one row in place."""

    def change(rows: list[Row]) -> None:
        for column, edit in changes.items():
            edit(rows[number][column])

    return change


def _double_bos(rows: list[Row]) -> None:
    second = rows[4]["seq_lengths"][0]
    rows[4]["input_ids"].insert(second, 1)
    rows[4]["labels"].insert(second + 1, 1)
    rows[4]["seq_lengths"][1] += 1


def _masked_eos(rows: list[Row]) -> None:
    rows[3]["labels"][-1] = IGNORE


def _lost_eos(rows: list[Row]) -> None:
    for column in ("input_ids", "labels"):
        del rows[3][column][-1]
    rows[3]["seq_lengths"][-1] -= 1


def _lost_bos(rows: list[Row]) -> None:
    del rows[2]["input_ids"][0]
    del rows[2]["labels"][1]
    rows[2]["seq_lengths"][0] -= 1


def _empty_mask(rows: list[Row]) -> None:
    length = rows[1]["seq_lengths"][0]
    rows[1]["labels"][:length] = [IGNORE] * length


def _overlong(rows: list[Row]) -> None:
    for column in rows[5]:
        rows[5][column] += rows[6][column]
    del rows[6]


def _empty_piece(rows: list[Row]) -> None:
    for column in ("seq_lengths", "prompt_lengths"):
        rows[3][column].insert(0, 0)


def _merged_articles(rows: list[Row]) -> None:
    first, second, *others = rows[2]["seq_lengths"]
    rows[2]["seq_lengths"] = [first + second, *others]
    del rows[2]["prompt_lengths"][0]


AGREE, FITS = "ids, labels and lengths of a row", "no row is longer"
BEGINS, ENDS = "every article begins", "every article ends"
INNER, FIRST = "no BOS and no eos within", "the first token"
LABEL, EMPTY, MASK = "a label is", "every article has a token", "trained on is"
COUNTS, IDS = "rows, tokens", "every id"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_double_bos, {INNER: "row 4, article 2"}),
        (_masked_eos, {ENDS: "row 3, article LAST", MASK: "row 3, article LAST"}),
        (_lost_eos, {ENDS: "row 3, article LAST", BEGINS: "row 3, article LAST"}),
        (_lost_bos, {BEGINS: "row 2, article 1", COUNTS: "has"}),
        (_empty_mask, dict.fromkeys((ENDS, EMPTY, MASK), "row 1, article 1")),
        (_overlong, {FITS: "row 5"}),
        (_merged_articles, {INNER: "row 2, article 1", MASK: "row 2, article 1", COUNTS: "has"}),
        (
            on(4, labels=lambda x: x.__setitem__(0, 1)),
            {FIRST: "row 4, article 1", MASK: "row 4, article 1"},
        ),
        (on(0, labels=lambda x: x.__setitem__(5, 77)), {LABEL: "row 0, article 1"}),
        (on(0, labels=lambda x: x.__setitem__(5, IGNORE)), {MASK: "row 0, article 1"}),
        (
            on(
                2, input_ids=lambda x: x.__setitem__(3, 512), labels=lambda x: x.__setitem__(3, 512)
            ),
            {IDS: "row 2, article 1"},
        ),
        (
            on(2, input_ids=lambda x: x.__setitem__(3, -1), labels=lambda x: x.__setitem__(3, -1)),
            {IDS: "row 2, article 1"},
        ),
        (on(3, seq_lengths=lambda x: x.__setitem__(0, x[0] - 1)), {AGREE: "row 3", COUNTS: "has"}),
        (_empty_piece, {AGREE: "row 3", COUNTS: "has"}),
        (on(3, labels=lambda x: x.pop()), {AGREE: "row 3", COUNTS: "has"}),
        (on(3, prompt_lengths=lambda x: x.pop()), {AGREE: "row 3", COUNTS: "has"}),
    ],
)
def test_each_fault_is_found_with_its_row(
    make_recipe, change: Callable[[list[Row]], Any], expected: dict[str, str]
) -> None:
    folder = prepare(make_recipe())
    assert verdicts(folder) == {}
    rewrite(folder, change)
    last = len(read_rows(folder, "train")[3]["seq_lengths"])
    found = verdicts(folder)
    assert len(found) == len(expected), found
    for claim, place in expected.items():
        (first,) = (text for name, text in found.items() if name.startswith(claim))
        assert first.startswith(f"train {place.replace('LAST', str(last))}"), found
        assert "article" in place or place == "has" or first.endswith("(1)")


def test_rows_behind_a_broken_one_keep_their_numbers(make_recipe) -> None:
    folder = prepare(make_recipe())
    rewrite(folder, lambda rows: (rows[0]["labels"].pop(), rows[1]["labels"].__setitem__(3, 77)))
    found = {claim[:5]: place for claim, place in verdicts(folder).items()}
    file = "train/data-00000-of-00001.arrow"
    assert found["ids, "] == f"train row 0 ({file}, its row 0) (1)"
    assert found["a lab"] == f"train row 1, article 1 ({file}, its row 1) (1)"


def test_a_fault_of_the_mask_of_answers(make_recipe) -> None:
    folder = prepare(make_recipe(prompt={"train_on": "answer"}))
    assert verdicts(folder) == {}
    rewrite(folder, on(1, labels=lambda x: x.__setitem__(1, 300)))
    assert {c[:5] for c in verdicts(folder)} == {"a lab", "train"}


def test_a_fault_in_a_long_article(make_recipe) -> None:
    folder = long_article(make_recipe)
    assert verdicts(folder) == {}

    def lose_a_piece(rows: list[Row]) -> None:
        assert rows[1]["input_ids"][0] != 1
        del rows[1]

    rewrite(folder, lose_a_piece)
    assert [claim[:20] for claim in verdicts(folder)] == [BEGINS]


def test_bos_and_eos_may_be_one_token(make_recipe, tokenizer_folder, home: Path) -> None:
    shutil.copytree(tokenizer_folder, home / "model")
    config = {"bos_token": "</s>", "eos_token": "</s>"}
    (home / "model/tokenizer_config.json").write_text(json.dumps(config))
    (home / "model/config.json").write_text("{}")
    words = {"title": "Another long one", "description": "word " * 90}
    recipe = make_recipe(articles=[*invented_articles(20), words], model={"base": "model"})
    folder = prepare(recipe)
    assert verdicts(folder) == {}
    rewrite(folder, on(0, input_ids=lambda x: x.__setitem__(1, 2)))
    assert {c[:5] for c in verdicts(folder)} == {"no BO", "a lab"}


def test_the_manifest_is_held_against_the_rows(make_recipe) -> None:
    folder = prepare(make_recipe())
    manifest = Manifest.read(folder)
    shard = replace(manifest.shards[0], trained_tokens=7)
    replace(manifest, shards=(shard, *manifest.shards[1:])).write(folder)
    (found,) = verdicts(folder).values()
    assert found.startswith("train/data-00000-of-00001.arrow has ")
