"""The base's 4-bit codes, made once for every job: `pressroom quantize MODEL`.

Each tensor is read, quantized slice by slice, and written with its decoder layer: memory holds the
codes of one layer, never a model. The folder is that of transformers' own `save_pretrained`, so any
client loads it. What a killed process had finished is kept. Knows nothing of who reads the codes.
"""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

import click
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import save_file
from transformers import AutoConfig

from pressroom.base_model import CLIENT_FILES, is_hub_id, local_folder, model_folder
from pressroom.console import Progress, UserError, entry, log, say
from pressroom.files import publish_file, publish_json, replace_folder, require_home
from pressroom.geometry import Geometry
from pressroom.locks import lock
from pressroom.nn.pieces import REFETCH, Files, bnb_config, empty_model, quantize
from pressroom.planner.weights import weights
from pressroom.quantized_base import MEND, Codes, manifest, read_manifest, summed, verify
from pressroom.recipe import Recipe
from pressroom.sections import Model
from pressroom.train_sections import DTYPES, Lora, Memory, Precision, Quantization


@click.command()
@click.argument("what", metavar="MODEL|RECIPE")
@click.argument("overrides", nargs=-1)
@click.option("--quant-type", type=click.Choice(["nf4", "fp4"]), help="The code book: nf4.")
@click.option("--double-quant/--no-double-quant", default=None, help="Quantize scales too: yes.")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Of all else: bf16.")
def main(what: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Make a base's 4-bit codes once; every job of such a recipe reads them.

    MODEL is a folder or ORG/NAME[@REVISION]; a RECIPE says all by itself, with `key=value` behind
    it. Called again it goes on where it was killed, or sees that what is there is whole.
    """
    given = {name: value for name, value in options.items() if value is not None}
    model, quantization, precision = _wanted(what, overrides, given)
    require_home()
    say(str(make(Codes(model_folder(model), quantization, precision)).absolute()))


def _wanted(
    what: str, overrides: tuple[str, ...], given: dict[str, Any]
) -> tuple[Model, Quantization, Precision]:
    """The model, how it is quantized, and the precision of the rest.

    Raises:
        UserError: A model was given keys, or a recipe options or nothing to quantize.
    """
    base, _, revision = what.partition("@")
    is_file = what.endswith((".yaml", ".yml")) or Path(what).is_file()
    if not is_file and (local_folder(what).is_dir() or is_hub_id(base)):
        if overrides:
            raise UserError(f"{overrides[0]}: a model has no keys; its options: --help")
        precision = cast(Precision, given.get("precision", "bf16"))
        how = {name: value for name, value in given.items() if name != "precision"}
        dtype = DTYPES[precision]
        quantization = Quantization(**how, compute_dtype=dtype, storage_dtype=dtype)
        is_local = local_folder(what).is_dir()
        model = Model(base=what) if is_local else Model(base=base, revision=revision or "main")
        return model, quantization, precision
    recipe = Recipe.load(what, overrides)
    for name, value in given.items():
        key = "memory.precision" if name == "precision" else f"quantization.{name}"
        raise UserError(
            f"--{name.replace('_', '-')}: a recipe says it by itself: write "
            f"{key}={str(value).lower()} behind its name"
        )
    if recipe.quantization is None:
        raise UserError(f"{what}: quantization: null leaves nothing to quantize")
    return recipe.model, recipe.quantization, recipe.memory.precision


def make(codes: Codes) -> Path:
    """Make the codes of a model, or see that they are there and whole.

    Returns:
        Where they lie.

    Raises:
        UserError: The model is damaged or quantized already, the disk too small, codes that were
            there are damaged, or another process makes them.
    """
    place = codes.place
    with lock(place.with_name(f".{place.name}.lock"), str(place)):
        if codes.find():
            verify(place)
            log.info("made already, and whole")
            return place
        _require_room(codes, place.parent)
        partial = place.with_name(f".{place.name}.partial")
        about = {
            **codes.spec,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "versions": {n: version(n) for n in ("torch", "transformers", "bitsandbytes")},
        }
        _write_shards(codes, partial, about)
        _write_rest(codes, partial)
        replace_folder(partial, place)
    return place


def _require_room(codes: Codes, folder: Path) -> None:
    """See that the model can be quantized, and that its codes have room.

    Raises:
        UserError: It is quantized already or no Llama, or the disk is too small.
    """
    geometry = Geometry.of(codes.folder)
    if "quantization_config" in json.loads((codes.folder / "config.json").read_text()):
        raise UserError(f"{codes.folder}: is quantized already; give the model it was made from")
    memory = Memory(precision=codes.precision)
    needed = weights(geometry, codes.quantization, Lora(), memory).base
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**30:.1f} GiB free, and the codes take {needed / 2**30:.1f}: "
            "make room, or name another place by PRESSROOM_HOME"
        )


def _write_shards(codes: Codes, partial: Path, about: dict[str, Any]) -> None:
    """Write every shard that a killed process has not: a decoder layer each, and what is in none.

    A shard stands in the manifest as soon as it is whole.
    """
    files = Files(codes.folder, REFETCH)
    model = empty_model(codes.folder, codes.quantization, codes.precision)
    linears = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    groups = _groups([name for name, _ in model.named_parameters()])
    made = _kept(partial, about)
    with Progress(
        f"quantize {codes.folder.name}", len(groups), "shard", done=len(made)
    ) as progress:
        for number, names in enumerate(groups, start=1):
            shard = f"model-{number:05}-of-{len(groups):05}.safetensors"
            if shard in made:
                continue
            tensors: dict[str, torch.Tensor] = {}
            for name in names:
                tensors |= _tensors(name, files.read(name), codes, is_linear=name in linears)
            with publish_file(partial / shard) as path:
                save_file(tensors, path, metadata={"format": "pt"})
            made[shard] = summed(partial / shard)
            publish_json(manifest(partial), {**about, "shards": dict(sorted(made.items()))})
            progress.advance()


def _groups(names: list[str]) -> list[list[str]]:
    """Names of parameters by decoder layer, and by module where they are in none; in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*\.layers\.\d+\.", name)
        found.setdefault(layer.group() if layer else name, []).append(name)
    return list(found.values())


def _kept(partial: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The shards that a killed process has finished: whole, and made as they would be now.

    All else that it left is removed.
    """
    partial.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {}
    if manifest(partial).is_file():
        left = read_manifest(partial)
        shards = left.pop("shards")
        if left == about:
            kept = {name: sums for name, sums in shards.items() if summed(partial / name) == sums}
    for file in partial.iterdir():
        if file.name not in kept and file != manifest(partial):
            file.unlink()
    if kept:
        log.info("going on: %d shards are there", len(kept))
    return kept


def _tensors(
    name: str, weight: torch.Tensor, codes: Codes, *, is_linear: bool
) -> dict[str, torch.Tensor]:
    """What is written of a parameter, by name, on the host."""
    dtype = getattr(torch, DTYPES[codes.precision])
    if not is_linear:
        return {name: weight.to(dtype)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packed, state = quantize(weight, codes.quantization, dtype, device)
    found = {name: packed} | {f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()}
    return {key: tensor.cpu() for key, tensor in found.items()}


def _write_rest(codes: Codes, partial: Path) -> None:
    """Write all that a client needs besides the shards: index, config and tokenizer."""
    files = {name: path.name for name, path in Files(partial, MEND).file_of.items()}
    publish_json(
        partial / "model.safetensors.index.json",
        {"metadata": {}, "weight_map": dict(sorted(files.items()))},
    )
    config = AutoConfig.from_pretrained(codes.folder)
    config.dtype = DTYPES[codes.precision]
    config.quantization_config = bnb_config(codes.quantization)
    config.save_pretrained(partial)
    for name in CLIENT_FILES:
        if (codes.folder / name).is_file():
            shutil.copyfile(codes.folder / name, partial / name)


if __name__ == "__main__":
    entry(main)
