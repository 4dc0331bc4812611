"""The frozen base: loaded in 4 bits, the same codes for training, evaluation and merging.

Knows nothing of runs or adapters.
"""

from pathlib import Path

import bitsandbytes as bnb
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pressroom import quantized_base
from pressroom.files import readable
from pressroom.nn.pieces import REFETCH, bnb_config, keep_codes
from pressroom.train_sections import DTYPES, Precision, Quantization


def load_base(
    folder: Path,
    quantization: Quantization | None,
    precision: Precision,
    device: torch.device | None,
) -> PreTrainedModel:
    """Load a model folder for its job: its codes where they were made, else quantized here.

    Args:
        folder: config.json and safetensors.
        quantization: How linear layers are stored; None leaves them as they are.
        precision: Gives the dtype of everything that is not quantized.
        device: Where the model goes; None leaves it to the library that will divide it.

    Returns:
        The model in eval mode, its parameters frozen.

    Raises:
        UserError: The folder's files, or the codes', are damaged.
    """
    transformers_logging.disable_progress_bar()
    codes = quantized_base.nearest(folder, quantization, precision)
    # Codes that were made already say themselves how: a None beside them would be believed.
    how = {"quantization_config": bnb_config(quantization)} if quantization and not codes else {}
    with readable(codes or folder, quantized_base.MEND if codes else REFETCH):
        model = AutoModelForCausalLM.from_pretrained(
            codes or folder,
            dtype=getattr(torch, DTYPES[precision]),
            **how,
            device_map={"": device} if device else None,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
        )
    for linear in _linears(model):
        keep_codes(linear)
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


def _is_4bit(module: torch.nn.Module) -> bool:
    return isinstance(module, bnb.nn.Linear4bit)


def _linears(model: PreTrainedModel) -> list[bnb.nn.Linear4bit]:
    return [module for module in model.modules() if _is_4bit(module)]
