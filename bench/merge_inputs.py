"""What bench/merge.py merges: a random model with its codes, and random adapters, on the disk."""

import json
from pathlib import Path

import torch
from geometries import TINY
from random_model import config_of
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM

from generate.merge_adapter import Adapter
from generate.merge_source import Source
from pressroom.geometry import Geometry
from pressroom.quantized_base import Codes
from pressroom.train_sections import Quantization
from train import quantize

GEOMETRIES = {
    "tiny": TINY,
    "1b": Geometry(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_layers=22,
        num_heads=32,
        num_kv_heads=4,
        head_dim=64,
    ),
}
CPU = torch.device("cpu")


def make(folder: Path, geometry: Geometry, rank: int) -> None:
    """Leave a model in four shards, its codes and an adapter in a folder."""
    base = folder / "model"
    if (folder / "adapter" / "adapter_config.json").is_file():
        return
    torch.manual_seed(0)
    model = LlamaForCausalLM(config_of(geometry)).to(torch.bfloat16)
    model.save_pretrained(base, max_shard_size=2 * geometry.num_weights // 4 + 2**26)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    words.save(str(base / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    (base / "tokenizer_config.json").write_text(json.dumps(tokens))
    quantize.make(Codes(base, Quantization(), "bf16"))
    tensors = {}
    for number in range(geometry.num_layers):
        for name, (out, into) in geometry.linear_shapes.items():
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            stem = f"base_model.model.model.layers.{number}.{part}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, into) / into**0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, rank) * 0.002
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    targets = list(geometry.linear_shapes)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
    config["base_model_name_or_path"] = str(base.absolute())
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def source_in(folder: Path) -> Source:
    """What `make` has left."""
    return Source(
        adapter=Adapter(folder / "adapter"),
        base=folder / "model",
        base_name=str(folder / "model"),
        quantization=Quantization(),
        precision="bf16",
    )
