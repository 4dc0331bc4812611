"""A model that writes, from what the user named: its folder's files, then its weights.

Only safetensors are read, and no code but the libraries' own. Knows nothing of what is written.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from generate.merge_source import Source
from generate.origin import Origin
from generate.tuned import add_adapter
from pressroom.base_model import asks_for_code, model_fingerprint
from pressroom.console import UserError, log
from pressroom.files import readable, sha256_json
from pressroom.geometry import Geometry
from pressroom.nn.nf4 import compute_in, load_base
from pressroom.tokenizer import ArticleTokenizer
from pressroom.train_sections import Quantization


@dataclass(frozen=True)
class Voice:
    """What the user named, opened.

    Raises:
        UserError: Of any of its members: something is missing, damaged, or asks for code.
    """

    origin: Origin

    @cached_property
    def folder(self) -> Path:
        """Has the configuration and the tokenizer."""
        return self.origin.model or self._source.base

    @cached_property
    def tokenizer(self) -> ArticleTokenizer:
        """The model's own."""
        return ArticleTokenizer(self.folder)

    @cached_property
    def positions(self) -> int:
        """Tokens of the longest text."""
        return Geometry.of(self.folder).max_positions

    @cached_property
    def fingerprint(self) -> str:
        """Tells one from another that would write otherwise."""
        made_of = self._source.fingerprint() if self.origin.adapter else None
        return sha256_json([made_of or model_fingerprint(self.folder), self.origin.dtype])[:16]

    @property
    def weight_bytes(self) -> int:
        """Of a model's files; 0 of an adapter, whose base in 4 bits is taken to fit a GPU."""
        if self.origin.adapter:
            return 0
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    @cached_property
    def _source(self) -> Source:
        """The adapter and its base: with a run as that says, else in 4 bits."""
        origin = self.origin
        assert origin.adapter
        if origin.run:
            return Source.of_run(origin.run, origin.run.load_recipe(), origin.adapter)
        source = Source.of_adapter(origin.adapter, origin.base)
        if wrong := asks_for_code(source.base):
            raise UserError(f"{source.base}: {wrong}")
        if source.quantization or not origin.quantized:
            return source
        log.info("%s: read in 4 bits, as trained on; --unquantized where not", source.base_name)
        return replace(source, quantization=Quantization(), precision="bf16")

    def load(self, place: torch.device | None) -> PreTrainedModel:
        """Its weights, in eval mode.

        Args:
            place: Where they go; None divides a model's layers among all GPUs, for one that does
                not fit a GPU. That is the library's `device_map="auto"`, and has not been tried
                on GPUs yet. An adapter is not divided: merge it first.
        """
        transformers_logging.disable_progress_bar()
        dtype = getattr(torch, self.origin.dtype) if self.origin.dtype else None
        if self.origin.adapter:
            source = self._source
            base = load_base(source.base, source.quantization, source.precision, place)
            tuned: PreTrainedModel = add_adapter(base, source.adapter.folder).eval()
            if dtype:
                compute_in(tuned, dtype)
            return tuned
        with readable(self.folder, "delete it, or merge again with `pressroom merge`"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=dtype or "auto",
                device_map={"": place} if place else "auto",
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
        return loaded.eval()
