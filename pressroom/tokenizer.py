"""Text -> token ids: the model's own tokenizer.json, through the `tokenizers` library.

The one place that puts BOS before a text and eos behind it, for preparation and generation
alike. Text is tokenized whole, for Llama 2's tokenizer is not compositional, and the name of a
special token inside an article stays plain text. Never uses transformers, whose rebuilt
pipelines lose tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pressroom.console import UserError
from pressroom.files import sha256_file


@dataclass(frozen=True)
class Tokens:
    """One tokenized article."""

    ids: list[int]
    """BOS, the prompt, the answer, eos."""
    prompt_length: int
    """How many of the ids, BOS included, come before the answer."""


class ArticleTokenizer:
    """A model's tokenizer, with its BOS and eos.

    Raises:
        UserError: The folder has no tokenizer.json, or it names no BOS or eos.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"model.base: {folder} has no tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # the tokenizers library raises nothing more particular
            raise UserError(f"model.base: {folder} has no readable tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.bos_id = self._special(config, "bos_token", folder)
        self.eos_id = self._special(config, "eos_token", folder)
        self.fingerprint = f"{sha256_file(path)} bos {self.bos_id} eos {self.eos_id}"

    def _special(self, config: dict[str, Any], name: str, folder: Path) -> int:
        token = config.get(name)
        content = token["content"] if isinstance(token, dict) else token
        token_id = self._tokenizer.token_to_id(content) if content else None
        if token_id is None:
            raise UserError(f"model.base: {folder}/tokenizer_config.json names no {name}")
        return int(token_id)

    def encode_prompt(self, text: str) -> list[int]:
        """BOS and the ids of a text that a model is to continue."""
        return [self.bos_id, *self._tokenizer.encode(text, add_special_tokens=False).ids]

    def encode_articles(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Tokens]:
        """Tokenize articles: BOS, prompt and answer as one text, eos.

        A token belongs to the answer when it starts at or behind the answer's first character.
        """
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens = []
        for prompt, encoding in zip(prompts, encodings, strict=True):
            before = sum(start < len(prompt) for start, _ in encoding.offsets)
            tokens.append(Tokens([self.bos_id, *encoding.ids, self.eos_id], 1 + before))
        return tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
