"""The held-out articles of a dataset, as tokens. Knows nothing of models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_from_disk

from pressroom.dataset import IGNORE, Manifest
from pressroom.index import on_rows, read_index
from pressroom.seal import require_whole


@dataclass(frozen=True)
class HeldOut:
    """One held-out article's tokens, unpacked."""

    ids: list[int]
    labels: list[int]
    prompt_length: int


def tokens(dataset: Path, split: str = "held_out") -> list[HeldOut]:
    """Unpack the rows of a split.

    Raises:
        UserError: A file of the dataset is damaged.
    """
    require_whole(dataset, Manifest.read(dataset), splits=(split,))
    articles = []
    for row in load_from_disk(str(dataset / split)):
        start = 0
        for length, prompt in zip(row["seq_lengths"], row["prompt_lengths"], strict=True):
            span = slice(start, start + length)
            articles.append(HeldOut(row["input_ids"][span], row["labels"][span], prompt))
            start += length
    return articles


def article_ids(dataset: Path) -> list[str]:
    """The article of each of the held-out `tokens`.

    Raises:
        UserError: The index is damaged.
    """
    index, ids = read_index(dataset), []
    for shard in Manifest.read(dataset).shards:
        if shard.split == "held_out":
            known = on_rows(index, shard.file)
            ids += [known[place][0] for place in sorted(known)]
    return ids


def batches(
    articles: Sequence[HeldOut], size: int, device: torch.device
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Batches of similar lengths, longest first, padded on the right.

    Yields:
        Which articles, input_ids [B, S], labels [B, S].
    """
    order = sorted(range(len(articles)), key=lambda i: -len(articles[i].ids))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        longest = len(articles[chosen[0]].ids)
        ids = [_padded(articles[i].ids, longest, 0) for i in chosen]
        labels = [_padded(articles[i].labels, longest, IGNORE) for i in chosen]
        yield chosen, torch.tensor(ids, device=device), torch.tensor(labels, device=device)


def _padded(values: list[int], length: int, padding: int) -> list[int]:
    return values + [padding] * (length - len(values))
