"""What is shown is what is trained on; each fault of a dataset is found with its row."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import invented_articles
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.audit import audit
from data_prep.decoded import show, spans, visible
from data_prep.inspect import main, promise_of
from data_prep.prepare import prepare
from data_prep.shards import SCHEMA
from pressroom import dataset
from pressroom.console import UserError
from pressroom.dataset import IGNORE, Manifest
from pressroom.files import sha256_file
from pressroom.report import packing_figure
from pressroom.tokenizer import ArticleTokenizer

Row = dict[str, list[int]]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, int]]:
    """Run the command; return what it says and its exit code."""

    def run(*arguments: object) -> tuple[str, int]:
        code = 0
        capsys.readouterr()
        try:
            main([str(a) for a in arguments], standalone_mode=False)
        except SystemExit as end:
            code = int(end.code or 0)
        return capsys.readouterr().out, code

    return run


def read_rows(folder: Path, split: str) -> list[Row]:
    path = folder / split / "data-00000-of-00001.arrow"
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def rewrite(folder: Path, change: Callable[[list[Row]], Any]) -> None:
    """Change the training rows by hand, with a manifest that is right about what it can know."""
    rows = read_rows(folder, "train")
    change(rows)
    path = folder / "train/data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        # Two batches, so that numbers of rows go on over their border.
        for part in (rows[:3], rows[3:]):
            writer.write_batch(pa.RecordBatch.from_pylist(part, schema=SCHEMA))
    manifest = Manifest.read(folder)
    labels = [label for row in rows for label in row["labels"]]
    shard = replace(
        manifest.shards[0],
        rows=len(rows),
        tokens=sum(len(row["input_ids"]) for row in rows),
        trained_tokens=sum(label != IGNORE for label in labels),
        sha256=sha256_file(path),
    )
    replace(manifest, shards=(shard, *manifest.shards[1:])).write(folder)


def verdicts(folder: Path) -> dict[str, str]:
    """Claim, by its first words, -> where it is false, for all that are."""
    manifest = Manifest.read(folder)
    tokenizer = ArticleTokenizer(folder / dataset.TOKENIZER)
    _, found = audit(folder, manifest, promise_of(manifest, tokenizer))
    return {v.claim: f"{v.first} ({v.faults})" for v in found if v.faults}


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

  ✓ every shard has the bytes that were written (sha256)
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


def long_article(make_recipe, **sections: Any) -> Path:
    words = " ".join(f"word{i}" for i in range(60))
    articles = [*invented_articles(20), {"title": "Another long one", "description": words}]
    return prepare(make_recipe(articles=articles, sequence_length=64, **sections))


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
    (tokens,) = tokenizer.encode_articles([""], [hostile])
    ids = tokens.ids
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
    assert "\x1b[90m\x1b[7m<s>\x1b[0m\x1b[36m### title: Mayor wins" in colored
    assert "the vote.\x1b[0m\x1b[36m\x1b[7m</s>\x1b[0m" in colored
    assert "⟦" not in colored
    plain = shown("--no-color")
    assert "\x1b" not in plain
    assert "⟦<s>⟧### title: Mayor wins" in plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == plain


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
    make_recipe, inspect, change: Callable[[list[Row]], Any], expected: dict[str, str]
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
    shown, code = inspect(folder, "--rows", 999)
    assert code == 1
    assert shown.count("✗") == len(expected)
    assert shown.count("✓") == 12 - len(expected)


def test_rows_behind_a_broken_one_keep_their_numbers(make_recipe) -> None:
    folder = prepare(make_recipe())
    rewrite(folder, lambda rows: (rows[0]["labels"].pop(), rows[1]["labels"].__setitem__(3, 77)))
    found = {claim[:5]: place for claim, place in verdicts(folder).items()}
    assert found["ids, "] == "train row 0 (1)"
    assert found["a lab"] == "train row 1, article 1 (1)"


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


def test_datasets_that_cannot_be_read(make_recipe, inspect) -> None:
    folder = prepare(make_recipe())
    (folder / "tokenizer/tokenizer_config.json").write_text('{"bos_token": "a", "eos_token": "b"}')
    with pytest.raises(UserError, match="is not the tokenizer that made the dataset"):
        inspect(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match=r"keeps no tokenizer.*pressroom prep"):
        inspect(folder)
    assert inspect("recipe.yaml")[1] == 0
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


def test_what_the_picture_shows() -> None:
    lengths, tokens, pieces = (
        np.array([64, 64, 30, 30]),
        np.array([64, 64, 60]),
        np.array([1, 1, 2]),
    )
    figure = packing_figure("name, train", lengths, tokens, pieces, 64)
    left, fill, shared = figure.axes
    assert figure.get_suptitle() == "name, train"
    assert left.get_title(loc="left") == "How long articles are: median 47 tokens"
    assert fill.get_title(loc="left") == "How full rows are: 97.9 % over all"
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    bars = {round(p.get_x()): p.get_height() for p in left.patches if p.get_height()}
    assert bars == {30: 2, 64: 2}
    assert sum(p.get_height() for p in fill.patches) == 3
    assert [p.get_height() for p in shared.patches] == [2, 1]


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 2's pipeline: spaces as ▁, one put before each text, bytes for rare characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *"abcdé"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    prepend, replace_ = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([prepend, replace_])
    spaces, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    steps = [spaces, decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder = tmp_path_factory.mktemp("llama")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["tokenizer_folder", "llama_folder"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spans_joined_are_the_text(request: pytest.FixtureRequest, kind: str, data) -> None:
    tokenizer = ArticleTokenizer(request.getfixturevalue(kind))
    text = data.draw(st.text("ab é😀中 \u202e", min_size=1))
    (tokens,) = tokenizer.encode_articles([""], [text])
    labels = [token if data.draw(st.booleans()) else IGNORE for token in tokens.ids]
    found = list(spans(tokens.ids, labels, tokenizer))
    assert [s.text for s in found if s.special] == ["<s>", "</s>"]
    assert "".join(s.text for s in found if not s.special) == visible(text)
    assert (
        "".join(show(found, color=False).split("⟦")).replace("⟧", "")
        == "    <s>" + visible(text) + "</s>"
    )


def test_a_space_belongs_to_the_word_behind_it(tokenizer_folder, llama_folder) -> None:
    for folder in (tokenizer_folder, llama_folder):
        tokenizer = ArticleTokenizer(folder)
        (tokens,) = tokenizer.encode_articles(["ab"], [" cd"])
        labels = [IGNORE] * tokens.prompt_length + tokens.ids[tokens.prompt_length :]
        shown = show(list(spans(tokens.ids, labels, tokenizer)), color=False)
        assert shown == "    ⟦<s>ab⟧ cd</s>"


def test_special_tokens_where_none_should_be(tokenizer_folder) -> None:
    tokenizer = ArticleTokenizer(tokenizer_folder)
    ids = [1, 1, 40, 2, 41, 999, -3, 2]
    shown = show(list(spans(ids, ids, tokenizer)), color=False)
    a, b = tokenizer.decode([40]), tokenizer.decode([41])
    assert shown == f"    <s><s>{a}</s>{b}<id 999><id -3></s>"


def test_line_breaks_are_marks_and_breaks() -> None:
    assert show([*spans_of("one\n\ntwo")], color=False) == "    one⏎\n    ⏎\n    two"


def spans_of(text: str) -> list[Any]:
    from data_prep.decoded import Span

    return [Span(visible(text), trained=True)]


def test_inspecting_loads_neither_torch_nor_pictures() -> None:
    code = "import sys, data_prep.inspect; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "data_prep.audit" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "matplotlib"})
