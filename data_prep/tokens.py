"""Article -> token ids and loss mask, in pieces that fit a row.

An article longer than a row is split: each later piece begins with the last token of the piece
before it, as context without loss, so every token is trained exactly once and none twice. Knows
nothing of rows or files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.articles import Article, Reject
from pressroom.console import UserError
from pressroom.dataset import IGNORE
from pressroom.prompts import FORMATS
from pressroom.recipe import Recipe
from pressroom.tokenizer import ArticleTokenizer, Tokens

_BATCH = 1000
_SAMPLE = 50

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of one article's tokens that goes into one row."""

    ids: Ids
    labels: Ids
    """The ids, or IGNORE: at the first token always, for nothing comes before it."""
    prompt_length: int
    """How many of the ids come before the article's description."""


def tokenize(
    articles: Sequence[Article], recipe: Recipe, tokenizer: ArticleTokenizer
) -> Iterator[list[Piece] | Reject]:
    """Tokenize articles in order; each gives its pieces, or a reject.

    Raises:
        UserError: The format's prompt does not end where a token ends.
    """
    prompt_format = FORMATS[recipe.prompt.format]
    for start in range(0, len(articles), _BATCH):
        batch = articles[start : start + _BATCH]
        prompts = [prompt_format.render_prompt(article.title) for article in batch]
        answers = [prompt_format.render_answer(article.description) for article in batch]
        tokens = tokenizer.encode_articles(prompts, answers)
        if start == 0:
            _require_boundary(prompts[:_SAMPLE], tokens, recipe.prompt.format, tokenizer)
        for article, encoded in zip(batch, tokens, strict=True):
            yield _pieces(encoded, recipe, article.place)


def _require_boundary(
    prompts: Sequence[str], tokens: Sequence[Tokens], name: str, tokenizer: ArticleTokenizer
) -> None:
    """A format whose prompt ends inside a token would generate from other ids than it trains on.

    One odd article may do so; when most of them do, it is the format.
    """
    alike = sum(
        tokenizer.encode_prompt(prompt) == article.ids[: article.prompt_length]
        for prompt, article in zip(prompts, tokens, strict=False)
    )
    if 2 * alike < len(prompts):
        raise UserError(
            f"prompt.format: with this tokenizer {name}'s prompt ends inside a token; let the "
            "answer begin with a space or a line break (pressroom/prompts.py)"
        )


def _pieces(tokens: Tokens, recipe: Recipe, place: str) -> list[Piece] | Reject:
    length = len(tokens.ids)
    if length > recipe.sequence_length and recipe.data.overlong == "reject":
        return Reject(place, "longer than a row", f"{length} tokens")
    answer_only = recipe.prompt.trains_on == "answer"
    if answer_only and tokens.prompt_length >= recipe.sequence_length:
        return Reject(place, "prompt fills a row", f"{tokens.prompt_length} tokens")
    ids = np.array(tokens.ids, dtype=np.int32)
    labels = ids.copy()
    labels[: tokens.prompt_length if answer_only else 1] = IGNORE
    return [
        Piece(
            ids[start:stop],
            np.concatenate([[np.int32(IGNORE)], labels[start + 1 : stop]], dtype=np.int32),
            min(max(tokens.prompt_length - start, 0), stop - start),
        )
        for start, stop in cuts(length, recipe.sequence_length)
    ]


def cuts(length: int, capacity: int) -> list[tuple[int, int]]:
    """Where to cut an article: (start, stop) of each piece, one token shared by neighbours.

    >>> cuts(10, 4)
    [(0, 4), (3, 7), (6, 10)]
    """
    starts = range(0, max(length - 1, 1), capacity - 1)
    return [(start, min(start + capacity, length)) for start in starts]
