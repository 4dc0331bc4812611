"""Prompts end where the offsets say, and a shard has every token of its articles once."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import WORDS, invented_articles
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from data_prep import tokens as tokens_module
from data_prep.shards import Written, describe, describe_split, write_shard
from data_prep.tokens import cuts
from pressroom.dataset import IGNORE, SPLITS
from pressroom.files import sha256_file
from pressroom.prompts import FORMATS
from pressroom.ragged import ranges
from pressroom.recipe import Recipe
from pressroom.rows import COLUMNS
from pressroom.token_bytes import bytes_of_tokens
from pressroom.token_words import Words
from pressroom.tokenizer import ArticleTokenizer

# Names of special tokens, other scripts, marks that combine, characters of several bytes, controls,
# what the tokenizers write for a space and for a byte, and spaces wherever they may be.
ODD = (
    *("</s>", "<s>", "<unk>", "<|im_end|>", "[INST]", "{title}", "<0x41>", "\u2581", "\u0120"),
    *(
        "é",
        "e\u0301",
        "日本の選挙",
        "🦙🔥",
        "👩\u200d👩\u200d👧",
        "\u202e",
        "\u00a0",
        "\ufeff",
        "\U0010fffd",
    ),
    *(
        "\x00",
        "\x07",
        "\x9b",
        "\n",
        "\r\n",
        "\t",
        " ",
        "  ",
        "a",
        "the city",
        "storm.",
        "1,000",
        "'s",
    ),
)
TEXT = st.one_of(st.lists(st.sampled_from(ODD), max_size=12).map("".join), st.text(max_size=30))


def _saved(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _as_is(source: Tokenizer) -> None:
    """The tokenizer as its fixture makes it."""


def _metaspace_step(scheme: str) -> Callable[[Tokenizer], None]:
    """Llama's as transformers writes it today: no normalizer, a step that puts the metaspace."""

    def change(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)

    return change


def _llama3(tokenizer: Tokenizer) -> None:
    """Words by a pattern, then bytes; offsets trimmed; a token added that is not special."""
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+")
    steps = [
        pre_tokenizers.Split(pattern, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_tokens([AddedToken("the city", lstrip=True, rstrip=True)])


def _normalized(tokenizer: Tokenizer) -> None:
    """A normalizer that makes texts shorter and longer: tokens say nothing of the text's bytes."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("a")])


def _dropping(tokenizer: Tokenizer) -> None:
    """A step that drops what it splits at."""
    steps = [
        pre_tokenizers.Split("a", "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _prefixed(tokenizer: Tokenizer) -> None:
    """A space before each part of a text: bytes that the text has not."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


KINDS: dict[str, tuple[str, Callable[[Tokenizer], None], bool]] = {
    "byte-level": ("tokenizer_folder", _as_is, True),
    "llama 3": ("tokenizer_folder", _llama3, True),
    "drops": ("tokenizer_folder", _dropping, True),
    "prefixes": ("tokenizer_folder", _prefixed, False),
    "normalizes": ("tokenizer_folder", _normalized, False),
    "llama 2": ("llama2_tokenizer", _as_is, True),
    "llama 2, first": ("llama2_tokenizer", _metaspace_step("first"), True),
    "llama 2, never": ("llama2_tokenizer", _metaspace_step("never"), True),
    "small llama": ("small_llama", _as_is, True),
}
"""Kind -> what it is made of, how it is changed, and whether its tokens tell their bytes."""


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of Llama 2's kind that needs no package."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(prepend)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = values["added_tokens"][:3]
    return _saved(Tokenizer.from_str(json.dumps(values)), tmp_path_factory.mktemp("s") / "small")


@pytest.fixture(scope="module", params=KINDS)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ArticleTokenizer, Tokenizer]:
    """A tokenizer, and the library's own that knows the offsets."""
    fixture, change, _ = KINDS[request.param]
    plain = Tokenizer.from_file(str(request.getfixturevalue(fixture) / "tokenizer.json"))
    change(plain)
    made = ArticleTokenizer(_saved(plain, tmp_path_factory.mktemp("kind") / "tokenizer"))
    plain.encode_special_tokens = True
    plain.post_processor = None
    return made, plain


def _by_offsets(plain: Tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """The definition: a token is the answer's that starts at or behind its first character."""
    encoding = plain.encode(prompt + answer, add_special_tokens=False)
    return encoding.ids, sum(start < len(prompt) for start, _ in encoding.offsets)


def _assert_alike(
    kind: tuple[ArticleTokenizer, Tokenizer], prompts: list[str], answers: list[str]
) -> None:
    made, plain = kind
    found = made.encode_articles(prompts, answers)
    expected = [_by_offsets(plain, *pair) for pair in zip(prompts, answers, strict=True)]
    whole = [i for ids, _ in expected for i in (made.bos_id, *ids, made.eos_id)]
    assert found.ids.tolist() == whole
    assert found.lengths.tolist() == [len(ids) + 2 for ids, _ in expected]
    assert found.prompt_lengths.tolist() == [1 + before for _, before in expected]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
@example([])
@example([("", ""), ("", " "), (" ", ""), ("🦙", "🦙"), ("", "🔥"), ("e", "\u0301"), ("a", "</s>")])
@example([("the city b ", ""), ("a", " b c "), ("a b", " c"), ("a\nb ", "")])  # words by themselves
@example([("the city b ", "storm")])  # its offsets asked for, and a space that belongs to a token
@example([("### title: \u2581 ### description:", " \u2581\u2581"), ("</s", ">"), ("a ", " b")])
def test_counted_is_as_asked_for(kind, articles: list[tuple[str, str]]) -> None:
    _assert_alike(kind, [prompt for prompt, _ in articles], [answer for _, answer in articles])


def test_articles_in_every_format_are_as_asked_for(kind) -> None:
    articles = invented_articles(40)
    for form in FORMATS.values():
        prompts = [form.render_prompt(a["title"]) for a in articles]
        _assert_alike(kind, prompts, [form.render_answer(a["description"]) for a in articles])


@pytest.mark.parametrize("name", KINDS)
def test_tokens_tell_their_bytes_where_they_can(name: str, request: pytest.FixtureRequest) -> None:
    fixture, change, tells = KINDS[name]
    plain = Tokenizer.from_file(str(request.getfixturevalue(fixture) / "tokenizer.json"))
    change(plain)
    assert (bytes_of_tokens(plain) is not None) == tells


@pytest.mark.parametrize("name", KINDS)
def test_words_stand_by_themselves_where_that_is_sure(
    name: str, request: pytest.FixtureRequest
) -> None:
    fixture, change, _ = KINDS[name]
    plain = Tokenizer.from_file(str(request.getfixturevalue(fixture) / "tokenizer.json"))
    change(plain)
    by_words = {"llama 2", "llama 2, first"}  # the small one has tokens that reach over spaces
    assert (Words.of(plain) is not None) == (name in by_words)


def test_a_token_over_a_space_and_a_token_that_is_cut_out(llama2_tokenizer: Path) -> None:
    text = (llama2_tokenizer / "tokenizer.json").read_text("utf-8")
    pipeline = json.loads(text)
    pipeline["model"]["vocab"]["of\u2581the"] = len(pipeline["model"]["vocab"])
    assert Words.of(Tokenizer.from_str(json.dumps(pipeline))) is None
    added = Tokenizer.from_str(text)
    added.add_tokens([AddedToken("the city")])
    assert Words.of(added) is None


def test_each_word_is_tokenized_once(llama2_tokenizer: Path) -> None:
    words = Words.of(plain := Tokenizer.from_file(str(llama2_tokenizer / "tokenizer.json")))
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(texts)
        found = [plain.encode(text, add_special_tokens=False).ids for text in texts]
        flat = [i for ids in found for i in ids]
        return np.array(flat, np.int32), np.array([len(ids) for ids in found])

    texts = [f"{a['title']}, {a['description']}" for a in invented_articles(300)]
    ids, lengths = words.encode(texts, encode)
    expected = [plain.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids.tolist() == [i for one in expected for i in one]
    assert lengths.tolist() == [len(one) for one in expected]
    assert sorted(" ".join(asked).split(" ")) == sorted({w for t in texts for w in t.split(" ")})


def test_offsets_are_asked_for_only_where_tokens_do_not_add_up(
    tokenizer_folder: Path, llama2_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    before = lambda prompt, encoding: asked.append(prompt) or 0  # noqa: E731
    monkeypatch.setattr("pressroom.tokenizer._before", before)
    for folder in (tokenizer_folder, llama2_tokenizer):
        prompts = ["plain", "été 🦙 </s>", "a metaspace \u2581", "", " "]
        ArticleTokenizer(folder).encode_articles(prompts, [" text"] * len(prompts))
    assert asked == ["a metaspace \u2581"]  # Llama's: it takes the character for a space


def table(articles: list[tuple[str, str]]) -> pa.Table:
    columns = {
        "id": [f"{number:016x}" for number in range(len(articles))],
        "title": [title for title, _ in articles],
        "description": [description for _, description in articles],
        "place": [f"a.jsonl:{number + 1}" for number in range(len(articles))],
    }
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def rows_of(path: Path) -> list[dict[str, list[int]]]:
    with pa.memory_map(str(path)) as source:
        return list(pa.ipc.open_stream(source).read_all().to_pylist())


@pytest.fixture
def write(make_recipe, tokenizer_folder: Path, tmp_path: Path) -> Callable[..., Written]:
    """Write a shard of articles into shard.arrow by a recipe with some overrides."""
    make_recipe()

    def make(articles: list[tuple[str, str]], *overrides: str) -> Written:
        recipe = Recipe.load("recipe.yaml", overrides)
        tokenizer = ArticleTokenizer(tokenizer_folder)
        return write_shard(tmp_path / "shard.arrow", table(articles), recipe, tokenizer)

    return make


LONG = ("the city", "storm fire river " * 60)
SOME = [(a["title"], a["description"]) for a in invented_articles(60)]


@pytest.mark.parametrize("train_on", ["all", "answer"])
def test_a_shard_trains_every_token_once(
    train_on: str, write, tmp_path: Path, tokenizer_folder: Path
) -> None:
    articles = [*SOME, LONG, ("", ""), ("🦙", "x" * 300)]
    written = write(articles, f"prompt.train_on={train_on}", "sequence_length=64")
    rows, tokenizer = rows_of(tmp_path / "shard.arrow"), ArticleTokenizer(tokenizer_folder)
    assert (written.rows, written.rejects) == (len(rows), [])
    assert written.tokens == sum(len(row["input_ids"]) for row in rows)
    trained = [label for row in rows for label in row["labels"] if label != IGNORE]
    assert written.trained_tokens == len(trained)
    assert written.sha256 == sha256_file(tmp_path / "shard.arrow")
    news = FORMATS["news"]
    encoded = [
        tokenizer.encode_articles([news.render_prompt(t)], [news.render_answer(d)])
        for t, d in articles
    ]
    expected = [
        i for e in encoded for i in e.ids[1 if train_on == "all" else e.prompt_lengths[0] :]
    ]
    assert sorted(trained) == sorted(expected)
    for row in rows:
        assert row.keys() == set(COLUMNS)
        ends = np.cumsum(row["seq_lengths"])
        assert ends[-1] == len(row["input_ids"]) == len(row["labels"]) <= 64
        assert all(row["labels"][start] == IGNORE for start in (0, *ends[:-1]))
        ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
        assert np.array_equal(labels[labels != IGNORE], ids[labels != IGNORE])


def test_the_index_leads_to_every_piece(write, tmp_path: Path, tokenizer_folder: Path) -> None:
    articles = [SOME[0], LONG, *SOME[1:]]
    index = write(articles, "sequence_length=64").index
    rows, tokenizer = rows_of(tmp_path / "shard.arrow"), ArticleTokenizer(tokenizer_folder)
    assert index.schema.names == ["id", "place", "rows", "pieces"]
    assert index["rows"].type == index["pieces"].type == pa.list_(pa.int32())
    assert index["place"].to_pylist() == [f"a.jsonl:{n + 1}" for n in range(len(articles))]
    news = FORMATS["news"]
    for (title, text), line in zip(articles, index.to_pylist(), strict=True):
        ids = tokenizer.encode_articles(
            [news.render_prompt(title)], [news.render_answer(text)]
        ).ids.tolist()
        pieces = [ids[start : start + 64] for start in range(0, max(len(ids) - 1, 1), 63)]
        found = []
        for row, piece in zip(line["rows"], line["pieces"], strict=True):
            a, b = [0, *np.cumsum(rows[row]["seq_lengths"]).tolist()][piece : piece + 2]
            found.append(rows[row]["input_ids"][a:b])
        assert found == pieces


def test_what_fits_no_row_is_rejected_with_place_and_id(write) -> None:
    articles = [SOME[0], LONG, ("river " * 60, "storm"), SOME[1]]
    written = write(articles, "data.overlong=reject", "sequence_length=64")
    assert [(r.place, r.id, r.cause) for r in written.rejects] == [
        ("a.jsonl:2", f"{1:016x}", "longer than a row"),
        ("a.jsonl:3", f"{2:016x}", "longer than a row"),
    ]
    assert written.rejects[0].detail.endswith(" tokens")
    assert written.index["place"].to_pylist() == ["a.jsonl:1", "a.jsonl:4"]
    written = write(articles, "prompt.train_on=answer", "sequence_length=64")
    assert [(r.place, r.cause) for r in written.rejects] == [("a.jsonl:3", "prompt fills a row")]
    assert len(written.index) == 3


@pytest.mark.parametrize("articles", [[], [LONG]])
def test_a_shard_without_an_article_is_an_empty_stream(articles, write, tmp_path: Path) -> None:
    written = write(articles, "data.overlong=reject", "sequence_length=64")
    assert (written.rows, written.tokens, written.trained_tokens, len(written.index)) == (0,) * 4
    assert len(written.rejects) == len(articles)
    assert rows_of(tmp_path / "shard.arrow") == []


def test_batches_change_no_byte(write, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = [*SOME, LONG, *SOME[:7]]
    whole = write(articles, "sequence_length=64")
    for size in (1, 300, 3000):
        monkeypatch.setattr(tokens_module, "_BATCH_BYTES", size)
        again = write(articles, "sequence_length=64")
        assert again.sha256 == whole.sha256
        assert again.index.equals(whole.index)


def test_many_record_batches_hold_what_one_holds(write, tmp_path, monkeypatch) -> None:
    write(SOME, "sequence_length=64")
    whole = rows_of(tmp_path / "shard.arrow")
    monkeypatch.setattr("data_prep.shards._BATCH_TOKENS", 200)
    write(SOME, "sequence_length=64")
    assert rows_of(tmp_path / "shard.arrow") == whole
    with pa.memory_map(str(tmp_path / "shard.arrow")) as source:
        assert max(map(len, pa.ipc.open_stream(source))) == 3


def test_datasets_opens_what_is_described(write, tmp_path: Path) -> None:
    from datasets import load_from_disk

    for split in SPLITS:
        (tmp_path / "d" / split).mkdir(parents=True)
        for number in range(2):
            write(SOME[number::2])
            name = f"data-{number:05d}-of-00002.arrow"
            (tmp_path / "shard.arrow").rename(tmp_path / "d" / split / name)
        names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
        describe_split(tmp_path / "d" / split, names, "0123456789abcdef")
    describe(tmp_path / "d")
    loaded = load_from_disk(str(tmp_path / "d"))
    for split in SPLITS:
        files = sorted((tmp_path / "d" / split).glob("*.arrow"))
        assert loaded[split].to_list() == [row for file in files for row in rows_of(file)]


@given(st.lists(st.integers(1, 500), max_size=20), st.integers(2, 64))
def test_cuts_share_one_token_and_cover_all(lengths: list[int], capacity: int) -> None:
    owners, starts, sizes = cuts(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(set(owners.tolist())) == list(range(len(lengths)))
    for number, length in enumerate(lengths):
        pieces = [(a, a + n) for o, a, n in zip(owners, starts, sizes, strict=True) if o == number]
        assert all(1 <= stop - start <= capacity for start, stop in pieces)
        assert (pieces[0][0], pieces[-1][1]) == (0, length)
        assert all(a[1] == b[0] + 1 for a, b in pairwise(pieces))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=20))
def test_ranges_are_ranges(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([p[i] for p in pairs], dtype=np.int64) for i in (0, 1))
    assert ranges(starts, lengths).tolist() == [i for s, n in pairs for i in range(s, s + n)]
