"""Adapter + base -> one model folder that any client loads: `pressroom merge RUN|ADAPTER`.

The base that was trained is the dequantized one: the 4-bit codes stand for weights, and scaled
B·A is added to those. Merging into the original weights gives another model (KL 0.29 in place of
0.004), merging into 4 bits erases the adapter. Tensors stream from file to file, so no model is
ever in memory, and the proof is on logits, a layer at a time. A folder bears its name when all of
it is there; what a killed process had finished is kept.
"""

import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from generate import merge_card, merge_proof
from generate.merge_plan import index, plan
from generate.merge_proof import prove
from generate.merge_rows import Merged
from generate.merge_source import PRECISIONS, Source, on_device
from generate.merge_write import Writer
from generate.tuned import device
from pressroom.base_model import CLIENT_FILES
from pressroom.console import UserError, log
from pressroom.files import publish_json, publish_text, replace_folder
from pressroom.locks import lock
from pressroom.run_dir import RunDir
from pressroom.train_sections import DTYPES, Dtype

BaseWeights = Literal["dequantized", "original"]
FORMAT_VERSION = 1
"""Raised whenever the same weights would give other files."""
REPORT = "merge.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How it is merged."""

    base_weights: BaseWeights = "dequantized"
    """What B·A is added to: the weights that were trained on, or those of the base's own files."""
    dtype: Dtype | None = None
    """Of what is written; None: that of training, and bfloat16 for fp32."""
    shard_size: str = "5GB"
    verify: bool = True

    def dtype_for(self, source: Source) -> Dtype:
        """The dtype that is written."""
        return self.dtype or DTYPES["bf16" if source.precision == "fp32" else source.precision]

    def command(self, source: Source) -> str:
        """The command that merges so, without a machine's paths."""
        run, folder = source.run, source.adapter.folder.absolute()
        what = folder.name
        if run:
            home, final = run.home.absolute(), run.adapter.absolute()
            what = run.title if folder == final else str(folder.relative_to(home))
        line = f"pressroom merge {what} --base-weights {self.base_weights}"
        line += f" --dtype {self.dtype_for(source)} --shard-size {self.shard_size}"
        return line if self.verify else line + " --no-verify"


def source_of(adapter: Path, run: RunDir | None, base: str | None = None) -> Source:
    """What is merged: an adapter of a run, or one of any origin.

    Raises:
        UserError: Adapter or base are missing or damaged.
    """
    if run is None:
        return Source.of_adapter(adapter, base)
    return Source.of_run(run, run.load_recipe(), adapter)


@torch.no_grad()
def merge(source: Source, output: Path, options: Options) -> dict[str, Any]:
    """Merge, prove it, and publish a folder.

    Returns:
        How far the logits are from those that were trained; empty where nothing is verified.

    Raises:
        UserError: Base, adapter and tokenizer do not belong together, one of them is damaged, the
            disk is full, another process merges, or the merged model is not what was trained.
    """
    beside = output.with_name
    with lock(beside(f".{output.name}.lock"), str(output)):
        if options.base_weights == "original" and source.is_codes:
            raise UserError(
                f"{source.base}: has 4-bit codes alone: give the model they were made from by "
                "--base, or leave out --base-weights original"
            )
        if source.note:
            log.warning("%s", source.note)
        place, dtype = device(), options.dtype_for(source)
        opened = source.opened(place)
        articles = merge_proof.texts(source) if options.verify else []
        partial, receipts = beside(f".{output.name}.partial"), beside(f".{output.name}.made.json")
        shards = plan(opened.shapes, getattr(torch, dtype), options.shard_size)
        facts = merge_card.facts(source, options.command(source), _versions())
        writer = Writer(partial, receipts, _about(source, options), shards)
        _require_room(output.parent, writer.missing_bytes)
        base = opened.base(options.base_weights)
        merged = Merged(base, source.adapter, getattr(torch, dtype), place)
        writer.write(merged, f"merge into {output.name}")
        _write_rest(source, partial, dtype)
        if len(shards) > 1:
            publish_json(partial / "model.safetensors.index.json", index(shards))
        report: dict[str, Any] = {}
        if options.verify:
            precision = PRECISIONS[dtype]
            report, wrong = prove(opened, partial, articles, precision, options.base_weights)
            if wrong:
                shutil.rmtree(partial)
                receipts.unlink()
                told = merge_proof.describe(report)
                raise UserError(f"the merged model is not what was trained ({wrong}):\n{told}")
            publish_json(partial / REPORT, report)
        publish_text(partial / "README.md", merge_card.card(replace(facts, report=report)))
        replace_folder(partial, output)
        receipts.unlink()
    return report


def _about(source: Source, options: Options) -> dict[str, Any]:
    """All that decides the bytes of the shards: a killed merge goes on where this is the same."""
    return {
        **source.fingerprint(),
        "base_weights": options.base_weights,
        "dtype": options.dtype_for(source),
        "shard_size": options.shard_size,
        "device": on_device(device()),
        "versions": _versions(),
        "format_version": FORMAT_VERSION,
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("pressroom", "torch", "bitsandbytes")}


def _require_room(folder: Path, needed: int) -> None:
    """See that the shards have room.

    Raises:
        UserError: They have not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**30:.1f} GiB free, and the merged model takes "
            f"{needed / 2**30:.1f} more: make room, or name another place by --output"
        )


def _write_rest(source: Source, partial: Path, dtype: Dtype) -> None:
    """Write what a client needs besides the weights."""
    config = AutoConfig.from_pretrained(source.base)
    config.dtype = dtype
    config.architectures = ["LlamaForCausalLM"]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(partial)
    for name in CLIENT_FILES:
        if (source.base / name).is_file():
            shutil.copyfile(source.base / name, partial / name)
