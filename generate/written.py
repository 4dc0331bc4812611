"""How written texts compare with real ones: lengths, variety, ends, what is copied. No models."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from generate.copies import Shared, search
from pressroom.dataset import TOKENIZER, Manifest
from pressroom.seal import require_whole
from pressroom.tokenizer import ArticleTokenizer
from pressroom.words import words

DISTINCT = (1, 2, 3)
MOST_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class Text:
    """A description that a model wrote, or a real one."""

    id: str | int
    prompt: str
    """What it was written behind."""
    words: str
    """The text itself."""
    ended: bool | None = None
    """Whether by eos; None: nobody knows."""
    title: str | None = None


def judge(dataset: Path, texts: Sequence[Text], real: Sequence[Text]) -> dict[str, Any]:
    """Figures of texts beside those of real ones that were not trained on.

    Args:
        dataset: That the model was trained on.
        texts: What was written.
        real: Held-out articles.

    Raises:
        UserError: The dataset is damaged.
    """
    manifest = Manifest.read(dataset)
    require_whole(dataset, manifest, splits=("train",))
    tokenizer = ArticleTokenizer(dataset / TOKENIZER)
    ids = [_description(tokenizer, text) for text in [*texts, *real]]
    shared = search(dataset, manifest, ids)
    written, held = shared[: len(texts)], shared[len(texts) :]
    counted = [len(words(text.words)) for text in texts], [len(words(text.words)) for text in real]
    distinct = distinct_shares([t.words for t in texts], [t.words for t in real])
    copies = [number for number, one in enumerate(written) if one.is_near_copy]
    return {
        "texts": len(texts),
        "ended": None if any(t.ended is None for t in texts) else sum(bool(t.ended) for t in texts),
        "words": {"written": counted[0], "real": counted[1]},
        "distinct": {"written": distinct[0], "real": distinct[1]},
        "shared": {"written": _share(written), "real": _share(held)},
        "near_copies": {"written": len(copies), "real": sum(one.is_near_copy for one in held)},
        "likest": _likest(tokenizer, texts, ids, written),
    }


def _description(tokenizer: ArticleTokenizer, text: Text) -> list[int]:
    """A text's tokens behind its prompt, as those of an article are."""
    tokens = tokenizer.encode_articles([text.prompt], [text.words])
    return [int(i) for i in tokens.ids[int(tokens.prompt_lengths[0]) : -1]]


def distinct_shares(*several: Sequence[str]) -> list[list[float]]:
    """Distinct n-grams among all n-grams of words, of each of several lists of texts.

    Li et al. 2016, "A Diversity-Promoting Objective Function", section 4.3. The share falls with
    the number of words, so all are cut where the one with the fewest ends; of none there are none.
    """
    lists = [[[w.lower() for w in words(text)] for text in texts] for texts in several]
    room = min(sum(map(len, texts)) for texts in lists)
    return [_distinct(_cut(texts, room)) if room else [] for texts in lists]


def _cut(texts: Sequence[list[str]], room: int) -> list[list[str]]:
    kept = []
    for text in texts:
        kept.append(text[:room])
        room -= len(kept[-1])
    return kept


def _distinct(texts: Sequence[list[str]]) -> list[float]:
    found = []
    for n in DISTINCT:
        grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
        found.append(len(set(grams)) / max(len(grams), 1))
    return found


def _share(shared: Sequence[Shared]) -> float:
    return sum(one.tokens for one in shared) / max(sum(one.num_tokens for one in shared), 1)


def _likest(
    tokenizer: ArticleTokenizer,
    texts: Sequence[Text],
    ids: Sequence[list[int]],
    shared: Sequence[Shared],
) -> list[dict[str, Any]]:
    """The texts that an article has most of, near-copies first."""
    found = []
    for text, tokens, one in zip(texts, ids, shared, strict=False):
        for source in one.sources[:1]:
            run = tokens[source.start : source.start + source.longest]
            found.append(
                {
                    "id": text.id,
                    "title": text.title,
                    "near_copy": one.is_near_copy,
                    "of_tokens": one.num_tokens,
                    **asdict(source),
                    "run": tokenizer.decode(run).strip(),
                    "also": [other.article for other in one.sources[1:4]],
                }
            )
    found.sort(key=lambda row: (not row["near_copy"], -row["tokens"], -row["longest"]))
    return found[: max(MOST_LISTED, sum(row["near_copy"] for row in found))]


def quantiles(lengths: Sequence[int]) -> tuple[float, float, float]:
    """Median, 10 % and 90 % of some lengths."""
    if not lengths:
        return 0.0, 0.0, 0.0
    low, middle, high = np.quantile(lengths, (0.1, 0.5, 0.9)).tolist()
    return middle, low, high
