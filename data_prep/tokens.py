"""Articles -> token ids, cut into pieces that fit a row.

An article longer than a row is split: each later piece begins with the last token of the piece
before it, as context without loss, so every token is trained exactly once and none twice. Knows
nothing of rows or files.

T tokens, A articles, P pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.articles import Reject
from pressroom.console import UserError
from pressroom.prompts import FORMATS
from pressroom.ragged import ranges
from pressroom.recipe import Recipe
from pressroom.tokenizer import ArticleTokenizer, Tokens

_BATCH_BYTES = 2**23
"""Of text tokenized at once."""
_SAMPLE = 50

Ids = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Runs of articles' tokens, each of which goes into one row; in the articles' order."""

    ids: Ids
    """[T]: every token of every article, BOS and eos included."""
    articles: Integers
    """[P]: whose piece it is, by its row in the table."""
    starts: Integers
    """[P]: its first token in `ids`."""
    lengths: Integers
    """[P]: how many of the ids."""
    prompt_lengths: Integers
    """[P]: how many of those come before the article's description."""
    masked: Integers
    """[P]: how many carry no loss: the first always, for nothing comes before it."""


def tokenize(
    articles: pa.Table, recipe: Recipe, tokenizer: ArticleTokenizer
) -> tuple[Pieces, list[Reject]]:
    """Tokenize articles and cut them into pieces; what does not fit is a reject.

    Args:
        articles: With text columns id, title, description, place.
        recipe: Its prompt, its sequence length, and what to do with what is longer.
        tokenizer: The model's.
    """
    capacity, answer_only = recipe.sequence_length, recipe.prompt.trains_on == "answer"
    tokens = _encode(articles, recipe.prompt.format, tokenizer)
    first_A = np.cumsum(tokens.lengths) - tokens.lengths
    overlong_A = (tokens.lengths > capacity) & (recipe.data.overlong == "reject")
    full_A = (tokens.prompt_lengths >= capacity) & answer_only & ~overlong_A
    rejects = [
        _reject("longer than a row", article, tokens.lengths[number])
        if overlong_A[number]
        else _reject("prompt fills a row", article, tokens.prompt_lengths[number])
        for number, article in _chosen(articles, overlong_A | full_A)
    ]
    good = np.flatnonzero(~overlong_A & ~full_A)
    owner_P, offsets_P, lengths_P = cuts(tokens.lengths[good], capacity)
    articles_P = good[owner_P]
    prompts_P = np.clip(tokens.prompt_lengths[articles_P] - offsets_P, 0, lengths_P)
    return Pieces(
        ids=tokens.ids,
        articles=articles_P,
        starts=first_A[articles_P] + offsets_P,
        lengths=lengths_P,
        prompt_lengths=prompts_P,
        masked=np.maximum(prompts_P, 1) if answer_only else np.ones_like(prompts_P),
    ), rejects


def cuts(lengths_A: Integers, capacity: int) -> tuple[Integers, Integers, Integers]:
    """Where to cut articles: neighbours share one token.

    Returns:
        Of each piece [P] the article, the first token in that, and the length.

    >>> [array.tolist() for array in cuts(np.array([3, 10]), 4)]
    [[0, 1, 1, 1], [0, 0, 3, 6], [3, 4, 4, 4]]
    """
    step = capacity - 1
    pieces_A = np.maximum(-(-(lengths_A - 1) // step), 1)
    owner_P = np.repeat(np.arange(len(lengths_A)), pieces_A)
    starts_P = step * ranges(np.zeros_like(pieces_A), pieces_A)
    return owner_P, starts_P, np.minimum(lengths_A[owner_P] - starts_P, capacity)


def _encode(articles: pa.Table, name: str, tokenizer: ArticleTokenizer) -> Tokens:
    """All articles' tokens; a batch at a time, for what the library makes takes room."""
    prompt_format = FORMATS[name]
    parts = [Tokens(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))]
    for batch in _batches(articles):
        prompts = [prompt_format.render_prompt(text) for text in batch["title"].to_pylist()]
        answers = [prompt_format.render_answer(text) for text in batch["description"].to_pylist()]
        parts.append(tokenizer.encode_articles(prompts, answers))
    return Tokens(
        ids=np.concatenate([part.ids for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        prompt_lengths=np.concatenate([part.prompt_lengths for part in parts]),
    )


def _batches(articles: pa.Table) -> Iterator[pa.Table]:
    """Neighbours of about `_BATCH_BYTES` of text together, the last of them whole."""
    bytes_A = sum(
        pc.binary_length(articles[name]).to_numpy().astype(np.int64)
        for name in ("title", "description")
    )
    batch_A = (np.cumsum(bytes_A) - bytes_A) // _BATCH_BYTES
    bounds = [0, *(1 + np.flatnonzero(np.diff(batch_A))), len(articles)]
    for start, stop in pairwise(bounds):
        if stop > start:
            yield articles.slice(start, stop - start)


def require_boundary(articles: pa.Table, name: str, tokenizer: ArticleTokenizer) -> None:
    """See that a format's prompt ends where a token ends, or one would generate from other ids.

    One odd article may do otherwise; when most of some do, it is the format.

    Args:
        articles: With text columns title and description; the first of them are looked at.
        name: Of the format.
        tokenizer: The model's.

    Raises:
        UserError: The prompt ends inside a token.
    """
    sample = articles.slice(0, _SAMPLE)
    prompts = [FORMATS[name].render_prompt(text) for text in sample["title"].to_pylist()]
    tokens = _encode(sample, name, tokenizer)
    starts = np.cumsum(tokens.lengths) - tokens.lengths
    alike = sum(
        tokenizer.encode_prompt(prompt) == tokens.ids[start : start + length].tolist()
        for prompt, start, length in zip(prompts, starts, tokens.prompt_lengths, strict=True)
    )
    if 2 * alike < len(prompts):
        raise UserError(
            f"prompt.format: with this tokenizer {name}'s prompt ends inside a token; let the "
            "answer begin with a space or a line break (pressroom/prompts.py)"
        )


def _chosen(
    articles: pa.Table, which_A: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Row in the table, and id and place, of some articles."""
    rows = np.flatnonzero(which_A)
    yield from zip(rows, articles.select(["id", "place"]).take(rows).to_pylist(), strict=True)


def _reject(cause: str, article: dict[str, str], count: int) -> Reject:
    return Reject(article["place"], cause, f"{count} tokens", article["id"])
