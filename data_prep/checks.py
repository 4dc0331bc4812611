"""What must be true of every piece of an article in a dataset, each as a sentence and a function.

A function takes the columns of some rows and finds, for all their pieces at once, where its
sentence is false. A piece is an article, or a part of one that was split. Names end in their
shape: N tokens, P pieces. Knows nothing of files or text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pressroom.dataset import Manifest
from pressroom.rows import Mask, Pieces
from pressroom.tokenizer import ArticleTokenizer


@dataclass(frozen=True)
class Promise:
    """What the rows were made to be."""

    sequence_length: int
    answer_only: bool
    bos_id: int
    eos_id: int
    vocabulary_size: int

    @classmethod
    def of(cls, manifest: Manifest, tokenizer: ArticleTokenizer) -> "Promise":
        """What a manifest and the tokenizer say of a dataset's rows."""
        return cls(
            sequence_length=manifest.spec["sequence_length"],
            answer_only=manifest.spec["prompt.train_on"] == "answer",
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            vocabulary_size=tokenizer.vocabulary_size,
        )


def ends(pieces: Pieces, promise: Promise) -> Mask:
    """Pieces that end with eos; an article's other pieces go on in another row."""
    ending: Mask = (pieces.last_ids_P == promise.eos_id) & (pieces.lengths_P > 1)
    return ending


def _unknown_id(pieces: Pieces, promise: Promise) -> Mask:
    unknown_N = (pieces.ids_N < 0) | (pieces.ids_N >= promise.vocabulary_size)
    return pieces.any(unknown_N)


def _inner_special(pieces: Pieces, promise: Promise) -> Mask:
    special_N = (pieces.ids_N == promise.bos_id) | (pieces.ids_N == promise.eos_id)
    special_N[pieces.starts_P] = False
    special_N[pieces.ends_P - 1] = False
    return pieces.any(special_N)


def _no_trained_eos(pieces: Pieces, promise: Promise) -> Mask:
    untrained_P = pieces.labels_N[pieces.ends_P - 1] != promise.eos_id
    too_short_P = pieces.lengths_P != promise.sequence_length
    wrong: Mask = np.where(ends(pieces, promise), untrained_P, too_short_P)
    return wrong


def _trained_first(pieces: Pieces, promise: Promise) -> Mask:
    trained: Mask = pieces.trained_N[pieces.starts_P]
    return trained


def _other_label(pieces: Pieces, promise: Promise) -> Mask:
    return pieces.any(pieces.trained_N & (pieces.labels_N != pieces.ids_N))


def _nothing_trained(pieces: Pieces, promise: Promise) -> Mask:
    return ~pieces.any(pieces.trained_N)


def _other_mask(pieces: Pieces, promise: Promise) -> Mask:
    """No loss on the first token, or on the whole prompt; loss on all that comes behind."""
    untrained_P = np.maximum(pieces.prompts_P if promise.answer_only else 0, 1)
    begins_N = np.repeat(pieces.starts_P + untrained_P, pieces.lengths_P)
    return pieces.any(pieces.trained_N != (np.arange(len(begins_N)) >= begins_N))


OF_PIECES: dict[str, Callable[[Pieces, Promise], Mask]] = {
    "every id is in the tokenizer's vocabulary": _unknown_id,
    "no BOS and no eos within an article: no second BOS, no other article": _inner_special,
    "every article ends with eos, trained on; where it goes on, it fills its row": _no_trained_eos,
    "the first token of an article carries no loss": _trained_first,
    "a label is its own token, or none": _other_label,
    "every article has a token that is trained on": _nothing_trained,
    "trained on is what the recipe says: prompt.train_on": _other_mask,
}
"""What is claimed -> which pieces it is false for, [P]."""
