"""What texts have in common with the articles that were trained on, word for word: near-copies.

However many articles there are, their rows pass by once (`generate/shared_runs.py`). Knows nothing
of models.
"""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from generate.shared_runs import MOST, Span, Windows, covered
from pressroom.console import Progress
from pressroom.dataset import Manifest
from pressroom.index import on_rows, read_index

LONG = 50
"""Tokens in one run from which on a text is a near-copy: Lee et al. 2022, section 4.1."""
SHARE = 0.5
"""Of a text's tokens in runs of one article, the same."""


@dataclass(frozen=True)
class Source:
    """What one article has of a text."""

    article: str
    """Its id."""
    tokens: int
    """Of the text, in runs."""
    longest: int
    """Tokens of the longest run."""
    start: int
    """Where that begins, in the text."""

    def is_near_copy(self, num_tokens: int) -> bool:
        """Whether a text of so many tokens has half of itself, or a long run, from here."""
        return self.longest >= LONG or self.tokens >= SHARE * num_tokens


@dataclass(frozen=True)
class Shared:
    """What of a text stands in articles."""

    num_tokens: int
    """Of the text."""
    tokens: int
    """In a run of any article."""
    sources: tuple[Source, ...]
    """The articles that have most of it, those first that make it a near-copy; of many, some."""

    @property
    def is_near_copy(self) -> bool:
        """Whether it is one of some article."""
        return any(source.is_near_copy(self.num_tokens) for source in self.sources)


class _Run(NamedTuple):
    """Tokens of a text that follow each other in a piece."""

    start: int
    """In the text."""
    end: int
    piece: int
    """Which of its article's."""


def search(folder: Path, manifest: Manifest, texts: Sequence[Sequence[int]]) -> list[Shared]:
    """Look for texts in the descriptions of a dataset's training articles.

    Args:
        folder: The dataset's; its files are whole.
        manifest: Its own.
        texts: Token ids of each, without those of prompts, BOS and eos.
    """
    wanted = Windows(texts)
    shards = [shard for shard in manifest.shards if shard.split == "train"]
    index = read_index(folder)
    runs: list[dict[str, list[_Run]]] = [defaultdict(list) for _ in texts]
    with (
        ThreadPoolExecutor() as pool,
        Progress("near-copies", sum(s.rows for s in shards), "row") as progress,
    ):
        paths = (folder / shard.file for shard in shards)
        for shard, found in zip(shards, pool.map(wanted.runs_in, paths), strict=True):
            pieces = on_rows(index, shard.file) if found else {}
            for text, by_place in found.items():
                for place, spans in by_place.items():
                    article, number = pieces[place]
                    runs[text][article] += [_Run(*span, number) for span in spans]
            progress.advance(shard.rows)
    return [
        Shared(len(text), int(np.sum(tokens)), _sources(len(text), by_article))
        for text, tokens, by_article in zip(texts, wanted.covered(), runs, strict=True)
    ]


def _sources(num_tokens: int, by_article: dict[str, list[_Run]]) -> tuple[Source, ...]:
    """Articles by how much of a text they have, and of its longest run."""
    sources = []
    for article, runs in by_article.items():
        start, end = max(_joined(runs), key=lambda span: (span[1] - span[0], -span[0]))
        tokens = covered([run[:2] for run in runs])
        sources.append(Source(article, tokens, end - start, start))
    sources.sort(key=lambda s: (not s.is_near_copy(num_tokens), -s.tokens, -s.longest, s.article))
    return tuple(sources[:MOST])


def _joined(runs: Sequence[_Run]) -> list[Span]:
    """Runs of an article; one that goes on in the next piece, which repeats a token, is one."""
    began: dict[tuple[int, int], int] = {}
    spans = []
    for run in sorted(runs, key=lambda run: (run.piece, run.start)):
        start = began.get((run.piece - 1, run.start + 1), run.start)
        began[run.piece, run.end] = start
        spans.append((start, run.end))
    return spans
