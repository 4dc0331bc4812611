"""Where a prompt ends among an article's tokens, told from the tokens' own bytes.

Asking the tokenizers library for the offset of every token costs more than counting: a token of a
byte-level BPE has a character a byte, one of Llama's a metaspace for a space. A tokenizer of
another kind has no such table, and an article whose tokens do not add up to its text is none that
may be counted: for both there are the offsets. Knows nothing of articles' text.
"""

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

UNKNOWN = 2**32
"""Bytes of a token that says nothing of the text it came from: more than any text has."""
METASPACE = "\u2581"
_PREPENDED = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": METASPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE},
    ],
}
"""Llama's normalizer, as Meta's tokenizer.model was converted."""


def bytes_of_tokens(tokenizer: Tokenizer) -> "tuple[Integers, int] | None":
    """Bytes of text that each id stands for, and how many more a text's tokens may have.

    Returns:
        [vocabulary] and 0, or 1 where a space is put before the text; None for tokenizers of a
        kind whose tokens do not tell.
    """
    import numpy as np

    pipeline = json.loads(tokenizer.to_str())
    model = pipeline["model"]
    if model["type"] != "BPE" or any(
        model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix")
    ):
        return None
    if _is_byte_level(pipeline):
        alphabet = set(ByteLevel.alphabet())

        def count(token: str) -> int:
            return len(token) if alphabet.issuperset(token) else UNKNOWN

    elif is_metaspace(pipeline):
        units = {f"<0x{byte:02X}>" for byte in range(256)}

        def count(token: str) -> int:
            return 1 if token in units else len(token.replace(METASPACE, " ").encode())

    else:
        return None
    added = {token["id"] for token in pipeline["added_tokens"]}
    unknown = tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None
    vocabulary = tokenizer.get_vocab()
    bytes_V = np.full(1 + max(vocabulary.values()), UNKNOWN, dtype=np.int64)
    for token, number in vocabulary.items():
        if number not in added and number != unknown:
            bytes_V[number] = count(token) or UNKNOWN
    return bytes_V, int(is_metaspace(pipeline))


def _is_byte_level(pipeline: dict[str, Any]) -> bool:
    """Whether nothing is added to a text: what is dropped shows in the sum."""
    steps = pipeline["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    return (
        pipeline["normalizer"] is None
        and kinds.count("ByteLevel") == 1
        and {"ByteLevel", "Split", "Digits"}.issuperset(kinds)
        and not any(step.get("add_prefix_space") for step in steps)
    )


def is_metaspace(pipeline: dict[str, Any]) -> bool:
    """Whether it is Llama's: spaces become metaspaces, one more comes first, bytes stand alone."""
    step = pipeline["pre_tokenizer"]
    by_normalizer = pipeline["normalizer"] == _PREPENDED and step is None
    by_step = pipeline["normalizer"] is None and (step or {}).get("type") == "Metaspace"
    return bool(pipeline["model"].get("byte_fallback")) and (
        by_normalizer or (by_step and step["replacement"] == METASPACE)
    )


def prompt_lengths(
    bytes_T: "Integers",
    lengths_A: "Integers",
    prompt_bytes_A: "Integers",
    text_bytes_A: "Integers",
    most_added: int,
) -> "tuple[Integers, npt.NDArray[np.bool_]]":
    """How many of each article's tokens, BOS included, begin before its answer.

    Args:
        bytes_T: Bytes of each token, articles one behind the other; 0 for BOS and eos.
        lengths_A: Tokens of each article, BOS and eos included.
        prompt_bytes_A: Bytes of the text up to the answer.
        text_bytes_A: Bytes of the whole text.
        most_added: How many bytes the tokenizer may have put before the text.

    Returns:
        [A], and [A] whether it is sure: the tokens add up to the text.
    """
    import numpy as np

    ends_A = np.cumsum(lengths_A)
    starts_A = ends_A - lengths_A
    after_T = np.cumsum(bytes_T)
    base_A = after_T[starts_A]
    added_A = after_T[ends_A - 1] - base_A - text_bytes_A
    # A token begins where the one before it ends; an article's first at 0, whatever was added.
    before_A = np.searchsorted(after_T, base_A + added_A + prompt_bytes_A) - starts_A
    sure_A = (added_A >= 0) & (added_A <= most_added)
    return 1 + np.where(prompt_bytes_A > 0, before_A, 0), sure_A
