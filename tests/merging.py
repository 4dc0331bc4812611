"""What the tests of merging share: models, adapters, and the merge in one memory."""

import json
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from generate import merge
from generate.merge_adapter import Adapter
from generate.merge_source import Source
from generate.tuned import add_adapter
from pressroom.nn.nf4 import compute_in, load_base
from pressroom.run_dir import RunDir
from pressroom.train_sections import DTYPES, Precision, Quantization

CPU = torch.device("cpu")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_llama(dtype: torch.dtype, **shape: Any) -> LlamaForCausalLM:
    """A random Llama, the same each time."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**{**sizes, **shape})).to(dtype)
    return model


def save_base(folder: Path, dtype: torch.dtype = torch.bfloat16, **shape: Any) -> Path:
    """A random Llama in several shards, with a tokenizer of three words."""
    model = random_llama(dtype, **shape)
    size = sum(p.numel() * dtype.itemsize for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // 3)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    words.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def save_adapter(
    folder: Path, base: Path, targets: tuple[str, ...] = TARGETS, **config: Any
) -> Path:
    """Random adapters of rank 4 on some linear layers of a base, as peft saves them."""
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(base))
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            stem, (out, into) = f"base_model.model.{name}", module.weight.shape
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, into) / 8
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, 4) / 20
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(targets)}
    said |= {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def quantization(precision: Precision = "bf16", **how: Any) -> Quantization:
    """A section whose dtypes are those of a precision."""
    dtype = DTYPES[precision]
    return Quantization(compute_dtype=dtype, storage_dtype=dtype, **how)


def source_of(
    adapter: Path, base: Path, how: Quantization | None = None, precision: Precision = "bf16"
) -> Source:
    """An adapter and the base it was trained on, quantized so."""
    return Source(
        adapter=Adapter(adapter),
        base=base,
        base_name=str(base),
        quantization=how,
        precision=precision,
    )


def in_one_memory(source: Source, base_weights: str = "dequantized") -> PreTrainedModel:
    """The merge as peft does it, in fp32: what the streamed one has to give."""
    if base_weights == "original":
        base = load_base(source.base, None, "fp32", CPU)
    else:
        base = load_base(source.base, source.quantization, source.precision, CPU)
        compute_in(base, torch.float32)
    for name, linear in [(n, m) for n, m in base.named_modules() if isinstance(m, Linear4bit)]:
        state = linear.weight.quant_state
        state.dtype = torch.float32
        weight = dequantize_4bit(linear.weight.data, state)
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        base.set_submodule(name, plain)
    return add_adapter(base, source.adapter.folder).merge_and_unload()


def merged_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def merge_run(run: RunDir, output: Path | None = None, **options: Any) -> dict[str, Any]:
    """`pressroom merge RUN`, in this process."""
    source = merge.source_of(run.adapter, run)
    return merge.merge(source, output or run.merged, merge.Options(**options))
