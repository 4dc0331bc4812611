"""A base model piece by piece: an empty one, and each module's weights when it is their turn.

For what never holds a whole model: `pressroom quantize`, and loading under FSDP. Knows nothing
of layers' order, of ranks or of adapters.
"""

from pathlib import Path

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from pressroom import quantized_base
from pressroom.files import readable
from pressroom.train_sections import DTYPES, Precision, Quantization

BLOCK = 64
"""Weights that share a scale."""
SLICE = 2**18
"""Weights quantized at a time on a CPU, where bitsandbytes takes 25 bytes for each; a GPU needs
no room for its work and gets a whole tensor."""
REFETCH = "fetch the base model again"


def bnb_config(quantization: Quantization) -> BitsAndBytesConfig:
    """A recipe's quantization in transformers' words."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, quantization.storage_dtype),
    )


def empty_model(
    folder: Path, quantization: Quantization | None, precision: Precision
) -> PreTrainedModel:
    """The model that `load_base` gives, frozen and in eval mode, on the meta device."""
    with readable(folder, REFETCH), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder),
            dtype=getattr(torch, DTYPES[precision]),
            attn_implementation="sdpa",
        )
    if quantization:
        replace_with_bnb_linear(model, get_keys_to_not_convert(model), bnb_config(quantization))
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            keep_codes(module)
    return model.requires_grad_(False).eval()


def keep_codes(linear: bnb.nn.Linear4bit) -> None:
    """Have a layer leave its codes as they are.

    On a CPU with AVX512-BF16 a forward under eval() and no_grad repacks them in place, and training
    then runs through a kernel without gradients: LoRA-B's were 95 % off.
    """
    linear.support_avx512bf16_for_cpu = False


def quantize(
    weight: torch.Tensor, quantization: Quantization, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, QuantState]:
    """`bitsandbytes.functional.quantize_4bit` of a weight in that dtype, slice by slice.

    Bit by bit the same, for a block knows nothing of others; but for the scales' own scales,
    which are made at once. On the device it takes the codes, the scales and one slice.

    Args:
        weight: [out, in], as it lies in its file.
        quantization: Code book, scales, and the dtype that packs the codes.
        dtype: What the weight is rounded to first.
        device: Where it is done.

    Returns:
        Packed codes [n, 1] and what undoes them.
    """
    count = weight.numel()
    packed = torch.empty(-(-count // 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=device)
    size = SLICE if device.type == "cpu" else count
    for start in range(0, count, size):
        piece = weight.reshape(-1)[start : start + size].to(device, dtype)
        codes, state = bnb.functional.quantize_4bit(
            piece, blocksize=BLOCK, quant_type=quantization.quant_type
        )
        packed[start // 2 :][: codes.numel()] = codes.view(-1)
        absmax[start // BLOCK :][: state.absmax.numel()] = state.absmax
    offset = nested = None
    if quantization.double_quant:
        offset = absmax.mean()
        absmax, nested = bnb.functional.quantize_blockwise(absmax - offset, blocksize=256)
    state = QuantState(
        absmax=absmax,
        shape=weight.shape,
        dtype=dtype,
        blocksize=BLOCK,
        code=state.code,
        quant_type=quantization.quant_type,
        offset=offset,
        state2=nested,
    )
    return packed.view(getattr(torch, quantization.storage_dtype)).unsqueeze(1), state


class Files:
    """A folder's safetensors: each tensor is mapped when it is asked for.

    Args:
        folder: Has them.
        hint: What to do when they are damaged.
    """

    def __init__(self, folder: Path, hint: str) -> None:
        self.folder, self._hint = folder, hint
        self.file_of: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with readable(path, hint), safe_open(path, "pt") as file:
                self.file_of |= dict.fromkeys(file.keys(), path)

    def read(self, name: str) -> torch.Tensor:
        """A tensor by its name.

        Raises:
            UserError: It is in none of the files, or its file is damaged.
        """
        with readable(self.folder, self._hint):
            if name not in self.file_of:
                raise KeyError(f"there is no tensor {name}")
        path = self.file_of[name]
        with readable(path, self._hint), safe_open(path, "pt") as file:
            return file.get_tensor(name)

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """All tensors whose names begin so, by the rest of their names."""
        names = [name for name in self.file_of if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.read(name) for name in names}


class Weights:
    """A base's weights for the modules of an empty model, quantized as it is.

    Args:
        folder: The base model; where its codes were made already, those are read. Or codes.
        quantization: How linear layers are stored; None leaves them as they are.
        precision: Gives the dtype of everything that is not quantized.
    """

    def __init__(
        self, folder: Path, quantization: Quantization | None, precision: Precision
    ) -> None:
        codes = quantized_base.nearest(folder, quantization, precision)
        self._files = Files(codes or folder, quantized_base.MEND if codes else REFETCH)
        self._quantization, self._dtype = quantization, getattr(torch, DTYPES[precision])

    def fill(self, module: torch.nn.Module, prefix: str, device: torch.device) -> None:
        """Give a module and all in it their weights, on a device.

        Args:
            module: Its parameters are on the meta device.
            prefix: Its name in the model's files, with a dot behind; its own parameters' names
                are those of the base, without adapters.
            device: Where the weights go.
        """
        for name, part in module.named_modules():
            for own, parameter in list(part.named_parameters(recurse=False)):
                if parameter.is_meta and "lora_" not in name:
                    path = ".".join(filter(None, (name.replace(".base_layer", ""), own)))
                    setattr(part, own, self._parameter(part, prefix + path, device))

    def _parameter(
        self, module: torch.nn.Module, name: str, device: torch.device
    ) -> torch.nn.Parameter:
        if not isinstance(module, bnb.nn.Linear4bit):
            weight = self._files.read(name).to(device, self._dtype, copy=True)
            return torch.nn.Parameter(weight, requires_grad=False)
        assert self._quantization is not None
        if f"{name}.absmax" in self._files.file_of:
            stats = {k: v.clone() for k, v in self._files.below(name + ".").items()}
            codes = self._files.read(name).to(device, copy=True)
            return bnb.nn.Params4bit.from_prequantized(codes, stats, device=device, module=module)
        codes, state = quantize(self._files.read(name), self._quantization, self._dtype, device)
        module.quant_state = state
        return bnb.nn.Params4bit(
            codes,
            quant_state=state,
            compress_statistics=self._quantization.double_quant,
            quant_type=self._quantization.quant_type,
            quant_storage=codes.dtype,
            module=module,
            bnb_quantized=True,
        )
