"""Decoded spans, joined, are the text; what they show cannot be mistaken."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.decoded import Span, show, spans, visible
from pressroom.dataset import IGNORE
from pressroom.tokenizer import ArticleTokenizer


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
    ids = tokenizer.encode_articles([""], [text]).ids.tolist()
    labels = [token if data.draw(st.booleans()) else IGNORE for token in ids]
    found = list(spans(ids, labels, tokenizer))
    assert [s.text for s in found if s.special] == ["<s>", "</s>"]
    assert "".join(s.text for s in found if not s.special) == visible(text)
    assert (
        "".join(show(found, color=False).split("⟦")).replace("⟧", "")
        == "    <s>" + visible(text) + "</s>"
    )


def test_a_space_belongs_to_the_word_behind_it(tokenizer_folder, llama_folder) -> None:
    for folder in (tokenizer_folder, llama_folder):
        tokenizer = ArticleTokenizer(folder)
        tokens = tokenizer.encode_articles(["ab"], [" cd"])
        ids, (prompt_length,) = tokens.ids.tolist(), tokens.prompt_lengths
        labels = [IGNORE] * prompt_length + ids[prompt_length:]
        shown = show(list(spans(ids, labels, tokenizer)), color=False)
        assert shown == "    ⟦<s>ab⟧ cd</s>"


def test_a_character_of_several_tokens_stays_whole(tokenizer_folder, llama_folder) -> None:
    for folder in (tokenizer_folder, llama_folder):
        tokenizer = ArticleTokenizer(folder)
        ids = tokenizer.encode_articles([""], ["a😀b"]).ids.tolist()
        first_byte = ids.index(tokenizer.encode_prompt("a")[-1]) + 2
        labels = [IGNORE] * first_byte + ids[first_byte:]
        shown = show(list(spans(ids, labels, tokenizer)), color=False)
        assert shown == "    ⟦<s>a⟧😀b</s>"


def test_special_tokens_where_none_should_be(tokenizer_folder) -> None:
    tokenizer = ArticleTokenizer(tokenizer_folder)
    ids = [1, 1, 40, 2, 41, 0, 999, -3, *tokenizer.encode_prompt("<unk>")[1:], 2]
    shown = show(list(spans(ids, ids, tokenizer)), color=False)
    a, b = tokenizer.decode([40]), tokenizer.decode([41])
    assert shown == f"    <s><s>{a}</s>{b}<unk><id 999><id -3>\\x3cunk></s>"


def test_line_breaks_are_marks_and_breaks() -> None:
    span = Span(visible("one\n\ntwo"), trained=True)
    assert show([span], color=False) == "    one⏎\n    ⏎\n    two"
