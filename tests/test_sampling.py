"""A text follows from model, prompt, seed and id: not from the batch that it is written in."""

import random
from pathlib import Path

import pytest
import torch

from pressroom.nn import sampling
from pressroom.nn.nf4 import load_base
from pressroom.samples import Sampling
from pressroom.tokenizer import ArticleTokenizer

LENGTHS = (2, 90, 3, 31, 7, 150, 12, 60, 4, 5)


@pytest.fixture(scope="module")
def model(tiny_model: Path):
    return load_base(tiny_model, None, "fp32", torch.device("cpu"))


def prompts(seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[1, *(source.randrange(3, 512) for _ in range(n - 1))] for n in LENGTHS]


def in_batches(model, how: Sampling, size: int, order: list[int]) -> list[list[int]]:
    """The new ids of each prompt, written in batches of that size in that order."""
    asked, found = prompts(), {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        written = sampling.generate(
            model, [asked[i] for i in chosen], how, eos_id=2, keys=[f"id {i}" for i in chosen]
        )
        found |= dict(zip(chosen, written, strict=True))
    return [found[i] for i in range(len(asked))]


@pytest.mark.parametrize(
    "how",
    [
        Sampling(max_new_tokens=24),
        Sampling(max_new_tokens=24, repetition_penalty=1.3),
        Sampling(max_new_tokens=24, temperature=1.0, seed=5),
        Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=6),
    ],
    ids=["greedy", "penalty", "drawn", "all"],
)
def test_a_text_is_the_same_whatever_the_batch_and_the_order(model, how: Sampling) -> None:
    alone = in_batches(model, how, 1, list(range(len(LENGTHS))))
    assert len({tuple(ids) for ids in alone}) == len(alone)
    for size in (2, 7):
        assert in_batches(model, how, size, list(range(len(LENGTHS)))) == alone
        assert in_batches(model, how, size, list(reversed(range(len(LENGTHS))))) == alone


def test_a_penalty_does_not_see_the_padding(model) -> None:
    """Padding is eos: counted as said, it would put off the end of all texts but the longest."""
    how = Sampling(max_new_tokens=4, repetition_penalty=1e9)
    asked = [[1, 40], [1, *range(3, 120)]]
    usual = sampling.generate(model, asked[:1], how, eos_id=2)[0]
    assert len(set(usual)) == 4
    assert sampling.generate(model, asked, how, eos_id=usual[1])[0] == usual[:2]


def test_other_seeds_and_other_ids_give_other_texts(model) -> None:
    how = Sampling(max_new_tokens=24, temperature=1.0)
    first = sampling.generate(model, [[1, 40]] * 2, how, eos_id=2, keys=["a", "b"])
    assert first[0] != first[1]
    other = Sampling(max_new_tokens=24, temperature=1.0, seed=1)
    assert sampling.generate(model, [[1, 40]], other, eos_id=2, keys=["a"])[0] != first[0]
    state = torch.get_rng_state()
    assert sampling.generate(model, [[1, 40]] * 2, how, eos_id=2, keys=["a", "b"]) == first
    assert torch.equal(torch.get_rng_state(), state)  # of the process: nothing is drawn from it


def test_tokens_are_drawn_by_their_probabilities(model) -> None:
    """Of 4,000 texts' first tokens: the likeliest ones come as often as the model says."""
    how = Sampling(max_new_tokens=1, temperature=0.3)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 40]])).logits[0, -1]
    logits[2] = -torch.inf  # a text begins
    expected = (logits / how.temperature).softmax(-1)
    keys = [str(i) for i in range(4000)]
    drawn = sampling.generate(model, [[1, 40]] * len(keys), how, eos_id=2, keys=keys)
    counts = torch.bincount(torch.tensor([ids[0] for ids in drawn]), minlength=512) / len(keys)
    error = (expected * (1 - expected) / len(keys)).sqrt()
    assert ((counts - expected).abs() <= 5 * error + 1 / len(keys)).all()
    top_p = Sampling(max_new_tokens=1, temperature=0.3, top_p=0.05)
    kept = expected.sort(descending=True)
    most = int((kept.values.cumsum(0) < 0.05).sum()) + 1
    drawn = sampling.generate(model, [[1, 40]] * 500, top_p, eos_id=2, keys=keys[:500])
    assert {ids[0] for ids in drawn} <= set(kept.indices[:most].tolist())
    assert most < 512


def test_a_text_ends_where_the_positions_do(model, monkeypatch) -> None:
    monkeypatch.setattr(model.config, "max_position_embeddings", 40)
    asked = [[1, *range(3, 37)], [1, 40]]
    how = Sampling(max_new_tokens=20)
    lengths = [len(ids) for ids in sampling.generate(model, asked, how, eos_id=2)]
    assert lengths == [5, 20]


def test_a_streamed_text_is_the_written_one(model, tiny_model: Path) -> None:
    tokenizer = ArticleTokenizer(tiny_model)
    for prompt in ("city", "caf\u00e9 \U0001f40e", ""):
        for how in (Sampling(max_new_tokens=30, temperature=2.0), Sampling(max_new_tokens=8)):
            pieces: list[str] = []
            (row,) = sampling.write(model, tokenizer, [prompt], how, tell=pieces.append)
            assert "".join(pieces) == row["text"] == prompt + row["continuation"]
            assert len(pieces) > 3
