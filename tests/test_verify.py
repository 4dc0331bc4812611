"""A flipped bit or a cut in any file of a dataset is found, named, and refused by training."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from by_hand import index_lines, read_rows, reseal, reshard, rewrite, write_stream
from conftest import invented_articles
from training import train

from data_prep.prepare import prepare
from data_prep.verify import main, verify
from generate import held_out
from pressroom import dataset, seal
from pressroom.console import UserError
from pressroom.dataset import INDEX, Manifest
from pressroom.index import SCHEMA as INDEX_SCHEMA
from pressroom.index import read_index

ARTICLES = [*invented_articles(60), {"title": "No description"}]
FILES = (
    "manifest.json",
    "dataset_dict.json",
    "held_out.jsonl",
    "rejects.jsonl",
    INDEX,
    "train/data-00000-of-00001.arrow",
    "train/state.json",
    "train/dataset_info.json",
    "held_out/data-00000-of-00001.arrow",
    "held_out/state.json",
    "held_out/dataset_info.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)


@pytest.fixture
def made(make_recipe) -> Path:
    """A whole dataset."""
    return prepare(make_recipe(articles=ARTICLES))


@pytest.fixture
def said(output_of) -> Callable[..., tuple[str, int]]:
    """Run the command; return what it says and its exit code."""
    return partial(output_of, main)


def faults(folder: Path) -> dict[str, str]:
    """Claim -> where it is false, for all that are."""
    return {verdict.claim: verdict.first for verdict in verify(folder)[1] if verdict.faults}


GOLDEN = """\
DATASET
  SIZE; ROWS rows, 60 articles, TOKENS tokens, TRAINED of them trained on

  ✓ the manifest is as it was written (its own checksum)
  ✓ every file has the bytes that were written (sha256)
  ✓ ids, labels and lengths of a row agree
  ✓ no row is longer than sequence_length
  ✓ every article begins with BOS, or with the last token of a piece that goes on
  ✓ every id is in the tokenizer's vocabulary
  ✓ no BOS and no eos within an article: no second BOS, no other article
  ✓ every article ends with eos, trained on; where it goes on, it fills its row
  ✓ the first token of an article carries no loss
  ✓ a label is its own token, or none
  ✓ every article has a token that is trained on
  ✓ trained on is what the recipe says: prompt.train_on
  ✓ rows, tokens, trained tokens and articles are as many as the manifest says
  ✓ the index names every article once, as many as the manifest says
  ✓ the rows that it names are there, and every piece on them is one article's
  ✓ articles read = trained on + held out + rejected; held_out.jsonl and rejects.jsonl list theirs
"""


def test_golden(made: Path, said) -> None:
    text, code = said(made)
    manifest = Manifest.read(made)
    size = sum((made / name).stat().st_size for name in seal.files_of(manifest)) / 2**20
    expected = GOLDEN.replace("SIZE", f"12 files, {size:.1f} MiB")
    for word, number in (
        ("ROWS", sum(s.rows for s in manifest.shards)),
        ("TOKENS", sum(s.tokens for s in manifest.shards)),
        ("TRAINED", sum(s.trained_tokens for s in manifest.shards)),
    ):
        expected = expected.replace(word, f"{number:,}")
    assert text.replace(str(made), "DATASET").splitlines() == expected.splitlines()
    assert code == 0
    assert said("recipe.yaml") == said(made.name) == (text, 0)
    quick, code = said(made, "--quick")
    assert (quick.count("✓"), code) == (2, 0)
    assert "rows" not in quick


def damaged(content: bytes, name: str) -> dict[str, bytes]:
    """Bits flipped at chosen places and by lot, and cuts: what was done -> the file."""
    lot = random.Random(name)
    places = {0, len(content) // 2, len(content) - 1} | {
        lot.randrange(len(content)) for _ in range(5)
    }
    done = {"cut to nothing": b"", "half": content[: len(content) // 2], "one less": content[:-1]}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << lot.randrange(8)
        done[f"byte {place}"] = bytes(flipped)
    return done


@pytest.mark.parametrize("name", FILES)
def test_every_damage_of_every_file_is_found_and_named(made: Path, said, name: str) -> None:
    assert {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()} == set(FILES)
    content = (made / name).read_bytes()
    for what, bad in damaged(content, name).items():
        (made / name).write_bytes(bad)
        text, code = said(made)
        assert code == 1, what
        assert text.count("✗") >= 1, what
        assert re.search(rf"not so: \S*{re.escape(name)}: ", text), (what, text)
        assert said(made, "--quick")[1] == 1, what
        with pytest.raises(UserError, match=re.escape(name)) as caught:
            seal.require_whole(made, Manifest.read(made))
        assert "`pressroom prep`" in str(caught.value)
    (made / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        seal.require_whole(made, Manifest.read(made))
    assert said(made)[1] == 1
    (made / name).write_bytes(content)
    assert said(made)[1] == 0


def test_any_bit_of_the_manifest_counts(made: Path) -> None:
    """Every seventh byte, and all where it ends: there a cut leaves the same JSON."""
    path = made / "manifest.json"
    content = path.read_bytes()
    for place in {*range(0, len(content), 7), *range(len(content) - 20, len(content))}:
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        for bad in (bytes(flipped), content[:place]):
            path.write_bytes(bad)
            with pytest.raises(UserError, match=r"manifest.json: .*pressroom prep"):
                Manifest.read(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: re.sub(r'"held_out": \d+', '"held_out": 999', text), "was changed after"),
        (lambda text: text.replace("\n", "\r\n"), "was changed after"),
        (lambda text: text + "\n", "was changed after"),
        (lambda text: text.replace('"sequence_length": 128', '"sequence_length": 1.28e2'), "chang"),
        (lambda text: re.sub(r',\n  "checksum": "\w+"', "", text), "has no checksum, as older"),
        (lambda text: re.sub(r'(sum": "\w+")', r'\1, "x": 1', text), "not a dataset's manifest"),
        (lambda text: "[]", "not a dataset's manifest"),
        (lambda text: "[" * 100_000, "not a dataset's manifest"),
    ],
)
def test_a_manifest_that_was_edited(made: Path, said, change: Any, message: str) -> None:
    path = made / "manifest.json"
    text = path.read_text()
    path.write_bytes(change(text).encode())
    with pytest.raises(UserError, match=message):
        Manifest.read(made)
    shown, code = said(made)
    assert code == 1
    assert "✗ the manifest" in shown
    assert "manifest.json: " in shown


def test_all_damages_are_named_at_once(made: Path, said) -> None:
    for name in ("train/state.json", "rejects.jsonl"):
        (made / name).write_bytes(b"x")
    (made / "tokenizer/tokenizer.json").unlink()
    text, code = said(made)
    assert code == 1
    for line in ("rejects.jsonl: damaged", "tokenizer.json: missing", "state.json: damaged"):
        assert line in text
    assert "✗ rows are looked at" in text
    assert f"Delete {made} and run `pressroom prep`" in text


def test_a_disk_that_cannot_read_is_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = seal.sha256_file

    def fails(path: Path) -> str:
        if path.name == "state.json":
            raise OSError(5, "Input/output error")
        return sound(path)

    monkeypatch.setattr(seal, "sha256_file", fails)
    with pytest.raises(UserError, match=r"train/state.json: cannot be read \(Input/output error\)"):
        seal.require_whole(made, Manifest.read(made))


@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        ("train/data-00001-of-00002.arrow", True),
        ("more.arrow", True),
        ("train/cache-0123456789abcdef.arrow", False),
        ("train/._data-00000-of-00001.arrow", False),
        (".DS_Store", False),
        ("train/notes.txt", False),
    ],
)
def test_files_that_were_not_written(made: Path, said, name: str, is_found: bool) -> None:
    shutil.copyfile(made / "train/data-00000-of-00001.arrow", made / name)
    text, code = said(made)
    assert code == is_found
    assert (f"{name}: not in the manifest" in text) == is_found
    if is_found:
        with pytest.raises(UserError, match="not in the manifest"):
            seal.require_whole(made, Manifest.read(made))


def test_long_checks_show_what_is_left(made: Path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO", "pressroom")
    seal.require_whole(made, Manifest.read(made))
    assert not caplog.messages
    monkeypatch.setattr(seal, "_LONG", 1)
    seal.require_whole(made, Manifest.read(made))
    assert re.fullmatch(r"checksums 12/12 MiB  0:00 left", caplog.messages[-1])


def test_training_refuses(made: Path) -> None:
    path = made / "tokenizer/tokenizer_config.json"
    path.write_text(path.read_text().replace("</s>", "<unk>"))
    with pytest.raises(UserError, match=r"tokenizer/tokenizer_config.json: damaged"):
        train()


def test_evaluation_looks_at_all_but_the_training_rows(made: Path) -> None:
    shutil.rmtree(made / "train")
    assert held_out.tokens(made)
    (made / "held_out.jsonl").write_text("")
    with pytest.raises(UserError, match=r"held_out.jsonl: damaged"):
        held_out.tokens(made)


def test_rows_are_only_looked_at_without_quick(made: Path, said) -> None:
    rewrite(made, lambda rows: rows[4]["labels"].__setitem__(5, 77))
    assert said(made, "--quick")[1] == 0
    text, code = said(made)
    assert code == 1
    assert "not so: train row 4, article 1 (train/data-00000-of-00001.arrow, its row 4)" in text


def test_a_bad_row_is_named_by_its_shard(made: Path) -> None:
    rewrite(made, lambda rows: rows[7]["labels"].__setitem__(5, 77))
    reshard(made, 3, 3)
    found = faults(made)
    assert found["a label is its own token, or none"] == (
        "train row 7, article 1 (train/data-00002-of-00003.arrow, its row 1)"
    )


def _batch_end(path: Path, number: int) -> int:
    """Where the batch of a stream ends, in bytes."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for _ in range(number):
            stream.read_next_batch()
        return source.tell()


def test_rows_of_a_cut_shard_are_looked_at_as_far_as_they_go(made: Path, said) -> None:
    rewrite(made, lambda rows: (rows[1]["labels"].pop(), rows[7]["labels"].__setitem__(5, 77)))
    reshard(made, 5)
    first = made / "train/data-00000-of-00002.arrow"
    rows = read_rows_of(first)
    write_stream(first, pa.schema(rows.schema), rows.to_pylist()[:3], rows.to_pylist()[3:])
    reseal(made)
    whole = first.read_bytes()
    end = _batch_end(first, 1)
    for size, then in ((end, ""), (end + 100, ", and then: .*not an Arrow stream")):
        first.write_bytes(whole[:size])
        found = faults(made)
        assert found["every file has the bytes that were written (sha256)"] == (
            "train/data-00000-of-00002.arrow: damaged"
        )
        counts = found["rows, tokens, trained tokens and articles are as many as the manifest says"]
        assert re.match(rf"train/data-00000-of-00002.arrow has 3 rows, .*{then}", counts)
        assert found["ids, labels and lengths of a row agree"].startswith("train row 1 (")
        assert found["a label is its own token, or none"] == (
            "train row 7, article 1 (train/data-00001-of-00002.arrow, its row 2)"
        )


def read_rows_of(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def test_rows_that_cannot_be_read_are_not_the_index_s_fault(made: Path) -> None:
    rewrite(made, lambda rows: None)
    path = made / "train/data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[: _batch_end(path, 1)])
    assert not {ONCE, FITS} & set(faults(made))


def test_what_stands_behind_the_last_row_is_told(made: Path) -> None:
    path = made / "train/data-00000-of-00001.arrow"
    rows = Manifest.read(made).rows("train")
    path.write_bytes(path.read_bytes()[:-8] + b"junkjunk")
    reseal(made)
    (found,) = faults(made).values()
    assert re.search(rf"arrow has {rows} rows, .*, and then: .*not an Arrow stream", found)


def test_a_shard_with_nulls(made: Path) -> None:
    name = "train/data-00000-of-00001.arrow"
    rows = read_rows(made, "train")
    rows[2]["labels"][3] = None
    write_stream(made / name, read_rows_of(made / name).schema, rows)
    reseal(made)
    counts = faults(made)[
        "rows, tokens, trained tokens and articles are as many as the manifest says"
    ]
    assert re.match(rf"{name} has 0 rows, .*: holds nulls", counts)


ONCE = "the index names every article once, as many as the manifest says"
FITS = "the rows that it names are there, and every piece on them is one article's"


@pytest.mark.parametrize(
    ("change", "claim", "message"),
    [
        (
            lambda lines: lines.pop(4),
            FITS,
            r"train.*arrow, its row \d+, piece \d+: 0 articles in the index",
        ),
        (lambda lines: lines.pop(4), ONCE, r"\d+ articles of train, the manifest \d+"),
        (
            lambda lines: lines[4].update(rows=[9999]),
            FITS,
            r"[0-9a-f]{16} on rows \[9999\] of train",
        ),
        (lambda lines: lines[4].update(rows=[-1]), FITS, r"on rows \[-1\] of train"),
        (lambda lines: lines[4].update(rows=[]), FITS, r"on rows \[\] of train"),
        (lambda lines: lines[4].update(rows=[], pieces=[]), FITS, r"on rows \[\] of train"),
        (lambda lines: lines[4].update(pieces=[7]), FITS, r"of train.*, as pieces \[7\]"),
        (lambda lines: lines[4].update(pieces=[-1]), FITS, r"as pieces \[-1\]"),
        (lambda lines: lines[0].update(shard="train/x.arrow"), FITS, r"of train/x.arrow"),
        (lambda lines: lines[4].update(id=lines[5]["id"]), ONCE, r"[0-9a-f]{16} stands 2 times"),
        (lambda lines: lines.append({**lines[0], "id": "0" * 16}), FITS, "piece 0: 2 articles"),
        (lambda lines: lines.clear(), ONCE, "0 articles of train"),
    ],
)
def test_the_index_is_held_against_the_rows(made: Path, change: Any, claim: str, message: str):
    lines = index_lines(made, ARTICLES[:60])
    change(lines)
    write_stream(made / INDEX, INDEX_SCHEMA, lines[:20], lines[20:])
    reseal(made)
    found = faults(made)
    assert re.search(message, found[claim]), found


def test_preparation_writes_the_index_that_the_rows_give(made: Path) -> None:
    written = sorted(read_index(made).to_pylist(), key=lambda line: line["id"])
    expected = sorted(index_lines(made, ARTICLES[:60]), key=lambda line: line["id"])
    assert written == expected


def test_an_index_of_another_kind(made: Path) -> None:
    for write, message in (
        (lambda path: path.write_text("{}"), "not an Arrow stream"),
        (lambda path: write_stream(path, pa.schema([("id", pa.int32())]), [{"id": 1}]), "columns"),
    ):
        write(made / INDEX)
        reseal(made)
        assert message in faults(made)[ONCE]


def test_the_lists_are_counted(made: Path) -> None:
    path = made / "rejects.jsonl"
    path.write_text(path.read_text() * 2)
    reseal(made)
    (found,) = faults(made).values()
    assert found == "rejects.jsonl has 2 lines, the manifest says 1"
    counts = Manifest.read(made).counts
    replace(Manifest.read(made), counts={**counts, "read": 99}).write(made)
    (found,) = faults(made).values()
    assert "'read': 99" in found


def test_another_dataset_with_a_damaged_manifest_is_in_nobodys_way(made: Path, home: Path) -> None:
    other = shutil.copytree(made, made.parent / "tiny-0123456789ab")
    (other / "manifest.json").write_text("{")
    recipe = dataset.Recipe.load("recipe.yaml")
    assert dataset.newest(recipe) == Manifest.read(made)
    with pytest.raises(UserError, match="no such dataset") as caught:
        dataset.find(dataset.Recipe.load("recipe.yaml", ["sequence_length=64"]), {})
    assert "0123456789ab" not in str(caught.value).partition("\n")[2]


def test_wrong_arguments(made: Path, said) -> None:
    for arguments, message in (
        (["data/nothing"], "data/nothing: no dataset and no recipe file$"),
        ([made.name, "seed=1"], "seed=1: .* is a dataset; key=value goes with a recipe"),
        (["recipe.yaml", "sequence_length=64"], "no such dataset; make it with `pressroom prep`"),
    ):
        with pytest.raises(UserError, match=message):
            said(*arguments)


def test_json_of_the_manifest_is_what_it_was(made: Path) -> None:
    values = json.loads((made / "manifest.json").read_text())
    assert list(values)[-1] == "checksum"
    Manifest.read(made).write(made)
    assert json.loads((made / "manifest.json").read_text()) == values
