"""What is merged: a run, or an adapter and the base that it names; all that can be wrong with it.

Knows nothing of how it is merged.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from generate.merge_adapter import Adapter
from generate.merge_plan import Shapes
from generate.tuned import base_folder, device
from pressroom import quantized_base
from pressroom.base_model import model_fingerprint, model_folder
from pressroom.console import UserError
from pressroom.files import read_json, sha256_file
from pressroom.geometry import Geometry
from pressroom.nn.base_rows import BaseRows, OriginalRows
from pressroom.nn.pieces import REFETCH, Files, empty_model
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.sections import Model
from pressroom.tokenizer import ArticleTokenizer
from pressroom.train_sections import DTYPES, Dtype, Precision, Quantization

PRECISIONS: dict[Dtype, Precision] = {dtype: precision for precision, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Source:
    """An adapter, and the base it was trained on."""

    adapter: Adapter
    base: Path
    """The model's folder; one of codes where the adapter names such a one."""
    base_name: str
    """What a reader knows it by."""
    quantization: Quantization | None
    precision: Precision
    run: RunDir | None = None

    @classmethod
    def of_run(cls, run: RunDir, recipe: Recipe, adapter: Path | None = None) -> "Source":
        """A run's adapter, or that of one of its checkpoints, on the base it was trained on.

        Raises:
            UserError: One of them is missing or damaged, or the base another.
        """
        return cls(
            adapter=Adapter(adapter or run.adapter),
            base=base_folder(run, recipe),
            base_name=recipe.model.base,
            quantization=recipe.quantization,
            precision=recipe.memory.precision,
            run=run,
        )

    @classmethod
    def of_adapter(cls, folder: Path, base: str | None) -> "Source":
        """An adapter of any origin, on the base that it names, as that one is.

        Args:
            folder: Of the adapter.
            base: A folder or ORG/NAME[@REVISION] in place of the one that it names.

        Raises:
            UserError: One of them is missing or damaged.
        """
        adapter = Adapter(folder)
        name = base or adapter.config.get("base_model_name_or_path")
        if not name or not isinstance(name, str):
            raise UserError(f"{folder}/adapter_config.json: names no base: give it by --base")
        hub_id, _, revision = name.partition("@")
        model = Model(base=hub_id, revision=revision) if revision else Model(base=name)
        try:
            place = model_folder(model)
        except UserError as error:  # "model.base" is a recipe's key, and there is none
            told = str(error).removeprefix("model.base: ")
            own = f"--base: {told}" if base else f"{folder}: its base {told}; --base names another"
            raise UserError(own) from None
        config = _config(place)
        dtype = config.get("dtype") or config.get("torch_dtype")
        precision: Precision = PRECISIONS.get(dtype, "bf16") if dtype else "bf16"
        return cls(
            adapter=adapter,
            base=place,
            base_name=name,
            quantization=_quantization(place, config.get("quantization_config")),
            precision=precision,
        )

    @property
    def note(self) -> str | None:
        """Whether the 4-bit codes of training are made again on another kind of device."""
        codes = quantized_base.nearest(self.base, self.quantization, self.precision)
        trained_on = str(self.run.facts.get("device")) if self.run else ""
        if self.quantization is None or codes or self.is_codes or not self.run:
            return None
        if trained_on.startswith("CPU") != (on_device(device()) == "CPU"):
            return (
                f"Training quantized the base on {trained_on}, and this merge did so again on "
                f"{on_device(device())}: some codes may differ. `pressroom quantize` before "
                "training makes them once for both."
            )
        return None

    @property
    def is_codes(self) -> bool:
        """Whether the base's folder has its 4-bit codes alone."""
        return "quantization_config" in _config(self.base)

    def opened(self, place: torch.device) -> "Opener":
        """See that all is there and belongs together, down to the shape of every tensor.

        Raises:
            UserError: The base, its codes, tokenizer or adapter do not belong together, or lack
                something.
        """
        config = _config(self.base)
        if config.get("auto_map"):
            raise UserError(
                f"{self.base}/config.json: auto_map asks for code of the model's own, which is "
                "never run: it could do anything"
            )
        vocabulary, tokens = Geometry.of(self.base).vocab_size, ArticleTokenizer(self.base)
        if tokens.vocabulary_size > vocabulary:
            raise UserError(
                f"{self.base}: its tokenizer has {tokens.vocabulary_size:,} tokens, and the model "
                f"{vocabulary:,}: they have not the same vocabulary"
            )
        plain = empty_model(self.base, None, self.precision)
        shapes = {name: tuple(p.shape) for name, p in plain.named_parameters()}
        quantized: frozenset[str] = frozenset()
        if self.quantization:
            model = empty_model(self.base, self.quantization, self.precision)
            modules = {n: type(m).__name__ for n, m in model.named_modules()}
            quantized = frozenset(f"{n}.weight" for n, k in modules.items() if k == "Linear4bit")
        self.adapter.require_fit(shapes, self.base_name)
        codes = quantized_base.nearest(self.base, self.quantization, self.precision)
        if codes:
            quantized_base.verify(codes)
            _require_whole(codes, shapes, quantized_base.MEND)
        _require_whole(self.base, shapes, REFETCH)
        return Opener(self, shapes, quantized, place)

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the merged weights but how they are asked for."""
        codes = quantized_base.nearest(self.base, self.quantization, self.precision)
        return {
            "adapter": self.adapter.fingerprint,
            "base": model_fingerprint(self.base),
            "codes": sha256_file(quantized_base.manifest(codes)) if codes else None,
            "quantization": repr(self.quantization),
            "precision": self.precision,
        }


@dataclass(frozen=True)
class Opener:
    """Opens a source's base, for either choice of what is merged into."""

    source: Source
    shapes: Shapes
    quantized: frozenset[str]
    device: torch.device

    def base(self, choice: str) -> BaseRows | OriginalRows:
        """The base as it was trained on (`dequantized`), or as it lies in its files."""
        source = self.source
        if choice == "original":
            return OriginalRows(source.base, self.device)
        return BaseRows(
            source.base, source.quantization, source.precision, self.device, self.quantized
        )


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(folder / "config.json", REFETCH)
    return config


def _quantization(folder: Path, config: dict[str, Any] | None) -> Quantization | None:
    """How a folder's linear layers are quantized, from its config.json.

    Raises:
        UserError: Not in 4 bits.
    """
    if config is None:
        return None
    if not config.get("load_in_4bit"):
        raise UserError(f"{folder}: is quantized, and not in 4 bits: only that is dequantized")
    return Quantization(
        quant_type=config["bnb_4bit_quant_type"],
        double_quant=config["bnb_4bit_use_double_quant"],
        compute_dtype=config["bnb_4bit_compute_dtype"],
        storage_dtype=config["bnb_4bit_quant_storage"],
    )


def _require_whole(folder: Path, shapes: Shapes, hint: str) -> None:
    """See that every tensor is there, in the shape that config.json says.

    Raises:
        UserError: Naming those that are not.
    """
    files = Files(folder, hint)
    index = folder / "model.safetensors.index.json"
    named = read_json(index, hint)["weight_map"] if index.is_file() else {}
    lost = [n for n in sorted(set(named.values())) if not (folder / n).is_file()]
    problems = [f"{name}: missing" for name in lost]
    for name, shape in shapes.items():
        if name not in files.file_of:
            problems.append(f"{name}: missing")
            continue
        own, is_codes = files.read(name), f"{name}.absmax" in files.file_of
        if is_codes and own.nbytes != -(-math.prod(shape) // 2):
            problems.append(f"{name}: is not 4 bits for each of {list(shape)}")
        if not is_codes and tuple(own.shape) != shape:
            said = f"and config.json says {list(shape)}"
            problems.append(f"{name}: is {list(own.shape)}, {said}")
    if problems:
        more = f"\n  and {len(problems) - 4} more" if len(problems) > 4 else ""
        listed = "\n  ".join(problems[:4])
        raise UserError(
            f"{folder}: not the model that its config.json describes; {hint}:\n  {listed}{more}"
        )


def on_device(place: torch.device) -> str:
    """What computes, in words."""
    return torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
