"""Text -> token ids: the model's own tokenizer.json, through the `tokenizers` library.

The one place that puts BOS before a text and eos behind it, for preparation and generation
alike. Text is tokenized whole, for Llama 2's tokenizer is not compositional, and the name of a
special token inside an article stays plain text. Never uses transformers, whose rebuilt
pipelines lose tokens.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from pressroom.console import UserError
from pressroom.files import sha256_file
from pressroom.ragged import ranges
from pressroom.token_bytes import bytes_of_tokens, prompt_lengths
from pressroom.token_words import Words, is_plain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pressroom.token_words import Ids, Integers

_BATCH = 2**20
"""Characters that the library tokenizes at once."""


@dataclass(frozen=True)
class Tokens:
    """Tokenized articles, one behind the other."""

    ids: "npt.NDArray[np.int32]"
    """[T]; of each article BOS, the prompt, the answer, eos."""
    lengths: "npt.NDArray[np.int64]"
    """[A]: how many of the ids are whose."""
    prompt_lengths: "npt.NDArray[np.int64]"
    """[A]: how many of an article's ids, BOS included, come before the answer."""


class ArticleTokenizer:
    """A model's tokenizer, with its BOS and eos.

    Raises:
        UserError: The folder has no tokenizer.json, or it names no BOS or eos.
    """

    def __init__(self, folder: Path) -> None:
        self._path = path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"model.base: {folder} has no tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            names = {name: config.get(name) for name in ("bos_token", "eos_token")}
        except Exception as error:  # the tokenizers library raises nothing more particular
            raise UserError(f"model.base: {folder} has no readable tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        # It adds BOS and eos, which is done here, and may cut spaces off a token's offsets.
        self._tokenizer.post_processor = None
        self.bos_id = self._special(names, "bos_token", folder)
        self.eos_id = self._special(names, "eos_token", folder)
        self.vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.fingerprint = f"{sha256_file(path)} bos {self.bos_id} eos {self.eos_id}"

    def _special(self, names: dict[str, Any], name: str, folder: Path) -> int:
        token = names[name]
        content = token.get("content") if isinstance(token, dict) else token
        token_id = self._tokenizer.token_to_id(content) if isinstance(content, str) else None
        if token_id is None:
            raise UserError(f"model.base: {folder}/tokenizer_config.json names no {name}")
        return int(token_id)

    def encode_prompt(self, text: str) -> list[int]:
        """BOS and the ids of a text that a model is to continue."""
        return [self.bos_id, *self._tokenizer.encode(text, add_special_tokens=False).ids]

    def encode_articles(self, prompts: Sequence[str], answers: Sequence[str]) -> Tokens:
        """Tokenize articles: BOS, prompt and answer as one text, eos.

        A token belongs to the answer when it starts at or behind the answer's first character.
        """
        import numpy as np

        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        if self._bytes_of_tokens is None:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            before = np.array([_before(*pair) for pair in zip(prompts, encodings, strict=True)])
            return Tokens(*self._framed(*_flat(encodings)), 1 + before.astype(np.int64))
        ids_T, lengths_A = self._framed(*self._encode(texts))
        bytes_V, most_added = self._bytes_of_tokens
        bytes_T = bytes_V[ids_T]
        ends_A = np.cumsum(lengths_A)
        bytes_T[ends_A - lengths_A] = bytes_T[ends_A - 1] = 0
        prompts_A, sure_A = prompt_lengths(
            bytes_T, lengths_A, _num_bytes(prompts), _num_bytes(texts), most_added
        )
        for index in np.flatnonzero(~sure_A).tolist():
            encoding = self._tokenizer.encode(texts[index], add_special_tokens=False)
            prompts_A[index] = 1 + _before(prompts[index], encoding)
        return Tokens(ids_T, lengths_A, prompts_A)

    @cached_property
    def _bytes_of_tokens(self) -> "tuple[npt.NDArray[np.int64], int] | None":
        return bytes_of_tokens(self._tokenizer)

    @cached_property
    def _words(self) -> Words | None:
        return Words.of(self._tokenizer)

    def _encode(self, texts: Sequence[str]) -> "tuple[Ids, Integers]":
        """The ids of texts, one behind the other, and how many each has."""
        import numpy as np

        words = self._words
        plain = np.array([words is not None and is_plain(text) for text in texts], bool)
        some = [text for text, is_ in zip(texts, plain, strict=True) if is_]
        rest = [text for text, is_ in zip(texts, plain, strict=True) if not is_]
        parts = [words.encode(some, self._encode_whole)] if words and some else []
        parts.append(self._encode_whole(rest))
        ids_T, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        place_A = np.argsort(np.argsort(~plain, kind="stable"))  # plain ones came first
        starts_A = (np.cumsum(lengths) - lengths)[place_A]
        return ids_T[ranges(starts_A, lengths[place_A])], lengths[place_A]

    def _encode_whole(self, texts: Sequence[str]) -> "tuple[Ids, Integers]":
        """The same by the library, some at a time: what it makes of a text is thirty times that."""
        import numpy as np

        parts = [(np.empty(0, np.int32), np.empty(0, np.int64))]
        sizes = accumulate(map(len, texts))
        for _, batch in groupby(zip(sizes, texts, strict=True), lambda pair: pair[0] // _BATCH):
            some = [text for _, text in batch]
            parts.append(_flat(self._tokenizer.encode_batch_fast(some, add_special_tokens=False)))
        ids, lengths = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _framed(self, ids_T: "Ids", lengths_A: "Integers") -> "tuple[Ids, Integers]":
        """The same with BOS before each text and eos behind it."""
        import numpy as np

        ends_A = np.cumsum(lengths_A + 2)
        framed = np.full(ends_A[-1] if len(ends_A) else 0, self.eos_id, np.int32)
        framed[ends_A - lengths_A - 2] = self.bos_id
        framed[ranges(ends_A - lengths_A - 1, lengths_A)] = ids_T
        return framed, lengths_A + 2

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def decode_runs(self, runs: Sequence[Sequence[int]]) -> list[str]:
        """Texts of runs of ids that follow each other; joined, they are the text of all the ids.

        Decoded one by one they are not: a space before a word belongs to the word's token but is
        stripped where a text begins, and a character of several tokens would fall apart. One that
        two runs share belongs to the later.
        """
        ids = list(chain.from_iterable(runs))
        whole = self.decode(ids)
        stops = list(accumulate(map(len, runs)))[:-1]
        # Behind a part of a character stands a replacement for it.
        ends = sorted(len(self.decode(ids[:stop]).rstrip("\ufffd")) for stop in stops)
        return [whole[start:end] for start, end in pairwise([0, *ends, len(whole)])]

    def special_names(self) -> dict[int, str]:
        """Id -> name of every token that no text contains, BOS and eos among them."""
        added = self._tokenizer.get_added_tokens_decoder()
        names = {number: token.content for number, token in added.items() if token.special}
        for number in (self.bos_id, self.eos_id):
            names[number] = str(self._tokenizer.id_to_token(number))
        return names

    def save(self, folder: Path) -> None:
        """Write a new folder from which the same tokenizer is read.

        Its bytes follow from the fingerprint: of tokenizer_config.json, BOS and eos alone.
        """
        folder.mkdir()
        shutil.copyfile(self._path, folder / self._path.name)
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        config = {name: self._tokenizer.id_to_token(number) for name, number in names.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")


def _before(prompt: str, encoding: Any) -> int:
    """How many tokens of a text start before its prompt ends."""
    return sum(start < len(prompt) for start, _ in encoding.offsets)


def _num_bytes(texts: Sequence[str]) -> "npt.NDArray[np.int64]":
    import numpy as np

    return np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))


def _flat(encodings: Sequence[Any]) -> "tuple[Ids, Integers]":
    """The ids of texts, one behind the other, and how many each has."""
    import numpy as np

    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    ids = chain.from_iterable(encoding.ids for encoding in encodings)
    return np.fromiter(ids, np.int32, lengths.sum()), lengths
