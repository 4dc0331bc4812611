"""The frozen base: loaded in 4 bits, the same codes for training, evaluation and merging.

Knows nothing of runs or adapters.
"""

from pathlib import Path

import bitsandbytes as bnb
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pressroom.files import readable
from pressroom.train_sections import DTYPES, Precision, Quantization


def load_base(
    folder: Path,
    quantization: Quantization | None,
    precision: Precision,
    device: torch.device | None,
) -> PreTrainedModel:
    """Load a model folder for its job, quantized on the way in.

    Args:
        folder: config.json and safetensors.
        quantization: How linear layers are stored; None leaves them as they are.
        precision: Gives the dtype of everything that is not quantized.
        device: Where the model goes; None leaves it to the library that will divide it.

    Returns:
        The model in eval mode, its parameters frozen.

    Raises:
        UserError: The folder's files are damaged.
    """
    transformers_logging.disable_progress_bar()
    config = quantization and BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, quantization.storage_dtype),
    )
    with readable(folder, "fetch the base model again"):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, DTYPES[precision]),
            quantization_config=config,
            device_map={"": device} if device else None,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
        )
    for linear in _linears(model):
        # On a CPU with AVX512-BF16 a forward under eval() and no_grad repacks the codes in place,
        # and training then runs through a kernel without gradients: LoRA-B's were 95 % off.
        linear.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    return model.eval()


def compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make a loaded model compute in another dtype; the 4-bit codes stay what they are."""
    linears = _linears(model)
    codes = {id(linear.weight) for linear in linears}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in codes and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    for linear in linears:
        linear.compute_dtype = dtype


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace each 4-bit linear by a plain one with the very weights that its codes stand for."""
    for name, linear in [(n, m) for n, m in model.named_modules() if _is_4bit(m)]:
        state = linear.weight.quant_state
        state.dtype = dtype  # as the forward does: code times scale, rounded once
        weight = bnb.functional.dequantize_4bit(linear.weight.data, state)
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        model.set_submodule(name, plain)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
        model.is_loaded_in_4bit = False


def _is_4bit(module: torch.nn.Module) -> bool:
    return isinstance(module, bnb.nn.Linear4bit)


def _linears(model: PreTrainedModel) -> list[bnb.nn.Linear4bit]:
    return [module for module in model.modules() if _is_4bit(module)]
