"""`pressroom inspect` shows what is trained on, says what is wrong, and drives no terminal."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from by_hand import long_article, rewrite
from conftest import invented_articles

from data_prep.inspect import main
from data_prep.prepare import prepare
from pressroom import dataset
from pressroom.console import UserError
from pressroom.dataset import IGNORE, Manifest
from pressroom.files import sha256_file
from pressroom.tokenizer import ArticleTokenizer


@pytest.fixture
def inspect(output_of) -> Callable[..., tuple[str, int]]:
    """Run the command; return what it says and its exit code."""
    return partial(output_of, main)


THREE = [
    {"title": "Storm over the city", "description": "Rain says fire."},
    {"title": "Mayor wins", "description": "The mayor wins the vote."},
    {"title": "Old horse", "description": "A horse opens the film season."},
]
GOLDEN = """\
trained on  ⟦not trained on⟧  <s> BOS  </s> eos  ⏎ line break  \\x1b a character by its code

train row 0 (train/data-00000-of-00001.arrow, its row 0): 40 of 128 tokens, 16 trained on, \
2 articles; positions restart at 0, 20
  article 1: positions 0 to 19, 7 trained on
    ⟦<s>### title: Storm over the city ### description:⟧ Rain says fire.</s>
  article 2: positions 0 to 19, 9 trained on
    ⟦<s>### title: Mayor wins ### description:⟧ The mayor wins the vote.</s>

DATASET
                                   train    held_out
  articles                             2           1
  pieces in which they stand           2           1
  tokens                              40          19
  of them trained on               40.0%       42.1%
  rows of 128                          1           1
  of their room used               31.2%       14.8%
  tokens of a piece: least            20          19
    median                            20          19
    95th percentile                   20          19
    most                              20          19

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
"""


def test_golden(make_recipe, inspect) -> None:
    recipe = make_recipe(
        articles=THREE,
        data={"articles": ["articles.jsonl"], "held_out": 0.3},
        prompt={"train_on": "answer"},
    )
    folder = prepare(recipe)
    by_folder, code = inspect(folder)
    assert by_folder.replace(str(folder), "DATASET").splitlines() == GOLDEN.splitlines()
    assert code == 0
    assert inspect("recipe.yaml") == (by_folder, 0)
    assert inspect(folder.name, "--row", 0)[0] == by_folder


def test_rows_are_spread_from_the_first_to_the_last(make_recipe, inspect) -> None:
    folder = prepare(make_recipe())
    last = Manifest.read(folder).rows("train") - 1
    shown, _ = inspect(folder, "--rows", 3)
    assert re.findall(r"^train row (\d+) ", shown, re.MULTILINE) == ["0", str(last // 2), str(last)]
    shown, _ = inspect(folder, "--rows", 0, "--split", "held_out")
    assert "row 0" not in shown
    assert "not trained on" not in shown


def test_a_dataset_is_shown_wherever_it_is(make_recipe, inspect, home: Path) -> None:
    folder = prepare(make_recipe())
    here, _ = inspect(folder)
    shutil.move(folder, home / "elsewhere")
    (home / "articles.jsonl").unlink()
    (home / "recipe.yaml").unlink()
    there, code = inspect("elsewhere")
    assert (there.replace("elsewhere", str(folder)), code) == (here, 0)


def test_a_long_article_begins_again_with_a_token_without_loss(make_recipe, inspect) -> None:
    folder = long_article(make_recipe)
    shown, code = inspect(folder, "--rows", 999)
    assert code == 0
    pieces = re.findall(r"^ +article \d+: (.*)\n +(⟦.*)$", shown, re.MULTILINE)
    long = [(note, text) for note, text in pieces if re.search(r"word\d", text)]
    assert len(long) > 2
    assert all(note.startswith("positions 0 to 63, 63 trained on") for note, _ in long[:-1])
    assert long[0][0].endswith("; goes on in another row")
    assert [note.count("continued") for note, _ in long] == [0] + [1] * (len(long) - 1)
    # Trained on, piece after piece, is the article: the token that is shown twice is not trained.
    trained = "".join(re.sub("⟦.*?⟧", "", text) for _, text in long)
    assert (
        trained
        == "### title: Another long one ### description: "
        + " ".join(f"word{i}" for i in range(60))
        + "</s>"
    )
    assert all(re.match("⟦[^⟧]+⟧", text) for _, text in long)


def test_text_that_would_drive_the_terminal_is_shown_by_code(make_recipe, inspect) -> None:
    hostile = "Say \x1b[31mred\x1b]0;title\x07 \u202ereversed\u2066 \x9b2J ⟦mask⟧ </s> <s> \u00ad"
    good = invented_articles(20)
    # Preparation removes some of it: the ids are written by hand.
    folder = prepare(make_recipe(articles=good))
    tokenizer = ArticleTokenizer(folder / dataset.TOKENIZER)
    ids = tokenizer.encode_articles([""], [hostile]).ids.tolist()
    row = {
        "input_ids": ids,
        "labels": [IGNORE, *ids[1:]],
        "seq_lengths": [len(ids)],
        "prompt_lengths": [1],
    }
    rewrite(folder, lambda rows: rows.__setitem__(0, row))
    shown, _ = inspect(folder, "--row", 0)
    assert (
        "⟦<s>⟧Say \\x1b[31mred\\x1b]0;title\\x07 \\u202ereversed\\u2066 \\x9b2J "
        "\\u27e6mask\\u27e7 \\x3c/s> \\x3cs> \\xad</s>" in shown
    )
    assert not any(c in shown for c in "\x1b\x07\x9b\u202e\u2066\u00ad")


def test_a_terminal_gets_colours_that_tell_the_mask(
    make_recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(make_recipe(articles=THREE, data={"articles": ["*.jsonl"], "held_out": 0.3}))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown(*options: str) -> str:
        main([str(folder), *options], standalone_mode=False)
        return capsys.readouterr().out

    colored = shown()
    assert "\x1b[2m\x1b[7m<s>\x1b[0m\x1b[36m### title: Mayor wins" in colored
    assert "the vote.\x1b[0m\x1b[36m\x1b[7m</s>\x1b[0m" in colored
    assert "⟦" not in colored
    plain = shown("--no-color")
    assert "\x1b" not in plain
    assert "⟦<s>⟧### title: Mayor wins" in plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == plain


def test_faults_are_told_and_end_with_1(make_recipe, inspect) -> None:
    folder = prepare(make_recipe())
    rewrite(folder, lambda rows: (rows[0]["labels"].pop(), rows[1]["labels"].__setitem__(3, 77)))
    shown, code = inspect(folder, "--rows", 999)
    assert code == 1
    assert shown.count("✓") == 9
    assert "  ✗ a label is its own token, or none\n      not so: train row 1, article 1 (" in shown
    assert "train row 0 (train/data-00000-of-00001.arrow, its row 0): its columns do not" in shown
    assert re.search(r"manifest says\n      not so: train has \d+ articles, the manifest 55", shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data/NAMF"], r"data/NAMF: no dataset and no recipe file; did you mean .*data/NAME\?"),
        (["other/thing"], "other/thing: no dataset and no recipe file$"),
        (["dem"], "did you mean demo"),
        (
            ["recipe.yaml", "sequence_length=256"],
            "sequence_length: the dataset has 128, the recipe",
        ),
        (["NAME", "sequence_length=256"], "sequence_length=256: NAME is a dataset; key=value goes"),
        (["NAME", "--row", "99"], r"--row 99: train has (\d+) rows, 0 to \d+$"),
        (["NAME", "--picture", "a.jpg"], "--picture a.jpg: must end in one of .png, .svg, .pdf"),
    ],
)
def test_wrong_arguments(make_recipe, inspect, arguments: list[str], message: str) -> None:
    name = prepare(make_recipe()).name
    wrong = name[:-1] + ("0" if name[-1] != "0" else "1")
    with pytest.raises(UserError, match=message.replace("NAME", name).replace("NAMF", wrong)):
        inspect(*(a.replace("NAME", name).replace("NAMF", wrong) for a in arguments))


def test_damaged_datasets_are_not_shown(make_recipe, inspect) -> None:
    folder = prepare(make_recipe())
    (folder / "tokenizer/tokenizer_config.json").write_text('{"bos_token": "a", "eos_token": "b"}')
    with pytest.raises(UserError, match=r"tokenizer/tokenizer_config.json: damaged"):
        inspect(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match=r"pressroom prep`:\n.*tokenizer.json: missing"):
        inspect("recipe.yaml")
    path = folder / Manifest.read(folder).shards[0].file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="arrow: damaged"):
        inspect("recipe.yaml")


def test_a_shard_of_another_kind(make_recipe, inspect) -> None:
    folder = prepare(make_recipe())
    manifest = Manifest.read(folder)
    path = folder / manifest.shards[0].file
    for write, message in (
        (lambda: path.write_text("{}"), "not an Arrow stream"),
        (lambda: _write_other(path), r"its columns are text \(string\)"),
    ):
        write()
        shard = replace(manifest.shards[0], sha256=sha256_file(path))
        replace(manifest, shards=(shard, *manifest.shards[1:])).write(folder)
        with pytest.raises(UserError, match=message):
            inspect(folder)


def _write_other(path: Path) -> None:
    table = pa.table({"text": ["a"]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture(make_recipe, inspect, home: Path, kind: str) -> None:
    folder = prepare(make_recipe())
    shown, code = inspect(folder, "--picture", f"pictures/p.{kind}")
    assert code == 0
    assert shown.endswith(f"pictures/p.{kind}\n")
    content = (home / f"pictures/p.{kind}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])


def test_inspecting_loads_neither_torch_nor_pictures() -> None:
    code = "import sys, data_prep.inspect; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "data_prep.audit" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "matplotlib"})
