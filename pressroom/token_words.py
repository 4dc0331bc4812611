"""Llama's tokens of a text, from those of its words: each different word is tokenized once.

A word's first token begins with the space before it, and none reaches over the next space: what
a byte-pair encoding merges in a text it merges within words, so the ids are the same. A corpus has
a tenth as many different words as words. Where a vocabulary, or a text, does not promise that, the
library tokenizes the whole text. Names end in their shape: T tokens, W words of all texts, U
different ones. Knows nothing of articles.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tokenizers import Tokenizer

from pressroom.ragged import ranges
from pressroom.token_bytes import METASPACE, is_metaspace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.int32]
    Integers = npt.NDArray[np.int64]

Encode: TypeAlias = "Callable[[Sequence[str]], tuple[Ids, Integers]]"
_BLOCK = 512
"""Words that are tokenized as one text: with 64 or 4,096 it took longer."""


@dataclass(frozen=True)
class Words:
    """What a tokenizer promises whose tokens keep within words."""

    begins_V: "npt.NDArray[np.bool_]"
    """[vocabulary]: whether an id begins a word."""
    space_id: int
    """Of a space without a word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Words | None":
        """None where a word's tokens are not sure to be those that it has in a text."""
        import numpy as np

        pipeline = json.loads(tokenizer.to_str())
        model, step = pipeline["model"], pipeline["pre_tokenizer"] or {}
        if (
            model["type"] != "BPE"
            or not is_metaspace(pipeline)
            or any(model.get(name) for name in ("dropout", "ignore_merges"))
            or step.get("split")
            or step.get("prepend_scheme") == "never"
            or not all(token["special"] for token in pipeline["added_tokens"])
            or METASPACE not in model["vocab"]
            or any(METASPACE in token.lstrip(METASPACE) for token in model["vocab"])
        ):
            return None
        begins_V = np.zeros(1 + max(model["vocab"].values()), dtype=bool)
        begins_V[[i for token, i in model["vocab"].items() if token.startswith(METASPACE)]] = True
        return cls(begins_V, model["vocab"][METASPACE])

    def encode(self, texts: Sequence[str], encode: Encode) -> "tuple[Ids, Integers]":
        """The ids of plain texts, one behind the other, and how many each has.

        Args:
            texts: Each of them plain.
            encode: The library's way, for texts of any kind.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        trails = np.array([text.endswith(" ") for text in texts], bool)
        whole = pa.array([text.removesuffix(" ") for text in texts], pa.large_string())
        words = pc.split_pattern(whole, " ")
        coded = words.flatten().dictionary_encode()
        ids_T, lengths_U = self._different(coded.dictionary.to_pylist(), encode)
        word_W = coded.indices.to_numpy()
        lengths_W = lengths_U[word_W]
        starts_W = (np.cumsum(lengths_U) - lengths_U)[word_W]
        before = np.concatenate([[0], np.cumsum(lengths_W)])[words.offsets.to_numpy()]
        ids = np.insert(ids_T[ranges(starts_W, lengths_W)], before[1:][trails], self.space_id)
        return ids, np.diff(before) + trails

    def _different(self, words_U: Sequence[str], encode: Encode) -> "tuple[Ids, Integers]":
        """The ids of words, each once, and how many each has."""
        import numpy as np

        blocks = [" ".join(words_U[i : i + _BLOCK]) for i in range(0, len(words_U), _BLOCK)]
        ids_T, _ = encode(blocks)
        starts_U = np.flatnonzero(self.begins_V[ids_T])
        assert len(starts_U) == len(words_U)
        return ids_T, np.diff(starts_U, append=len(ids_T))


def is_plain(text: str) -> bool:
    """Whether a text's words have one space between them; one more may follow the last."""
    return text[:1] not in ("", " ") and "  " not in text and METASPACE not in text
