"""Counted bytes are those that bitsandbytes and peft really hold."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from pressroom.geometry import SIZES, Geometry
from pressroom.nn.nf4 import load_base
from pressroom.planner.weights import ATTENTION, adapter_weights, quantized_linear, weights
from pressroom.train_sections import Lora, Memory, Quantization

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from random_model import config_of

SHAPES = [
    (64, 128, 2, 4, 2),
    (128, 320, 3, 4, 4),
    (192, 448, 1, 3, 1),
    (256, 704, 2, 8, 2),
]


def geometry_of(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> Geometry:
    return Geometry(
        vocab_size=320,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
    )


def held(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def scales_of(linear: Linear4bit) -> int:
    return state_bytes(linear.weight.quant_state)


def state_bytes(state) -> int:
    total = held(state.absmax) + held(state.code)
    if state.nested:
        total += held(state.offset) + held(state.state2.absmax) + held(state.state2.code)
    return total


@pytest.mark.parametrize("storage", ["bfloat16", "float32", "uint8"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_base_takes_what_is_counted(
    tmp_path: Path, shape: tuple[int, ...], double_quant: bool, storage: str
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    geometry = geometry_of(*shape)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=geometry.hidden_size,
        intermediate_size=geometry.intermediate_size,
        num_hidden_layers=geometry.num_layers,
        num_attention_heads=geometry.num_heads,
        num_key_value_heads=geometry.num_kv_heads,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    quantization = Quantization(double_quant=double_quant, storage_dtype=storage)
    model = load_base(tmp_path, quantization, "bf16", torch.device("cpu"))
    linears = [m for m in model.modules() if isinstance(m, Linear4bit)]
    counted = weights(geometry, quantization, Lora(), Memory())
    assert counted.codes == sum(held(m.weight) for m in linears)
    assert counted.scales == sum(scales_of(m) for m in linears)
    plain = [p for p in model.parameters() if not type(p).__name__.startswith("Params4bit")]
    assert counted.other == sum(map(held, plain))


@pytest.mark.parametrize("r", [8, 16, 64, 256])
@pytest.mark.parametrize("targets", ["all-linear", ATTENTION])
def test_adapters_are_pefts(r: int, targets: tuple[str, ...]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    geometry = geometry_of(128, 320, 3, 4, 2)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.device("meta"):
        base = LlamaForCausalLM(config)
    named = targets if isinstance(targets, str) else list(targets)
    model = get_peft_model(base, LoraConfig(r=r, target_modules=named))
    counted = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert adapter_weights(geometry, Lora(r=r, target_modules=targets)) == counted


@pytest.fixture(scope="module")
def on_meta() -> dict[str, torch.nn.Module]:
    """Llama 2 in its three sizes, without memory."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return {size: LlamaForCausalLM(config_of(SIZES[size])) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_the_real_shapes(size: str, on_meta) -> None:
    geometry = SIZES[size]
    layers = on_meta[size].model.layers
    quantized = sum(m.weight.numel() for m in layers.modules() if isinstance(m, torch.nn.Linear))
    every = sum(p.numel() for p in on_meta[size].parameters())
    assert geometry.num_linear_weights == quantized
    assert geometry.num_weights == every
    assert geometry.num_other_weights == every - quantized


@pytest.mark.parametrize("r", [8, 64, 256])
@pytest.mark.parametrize("targets", ["all-linear", ATTENTION])
@pytest.mark.parametrize("size", SIZES)
def test_adapters_of_the_real_shapes_are_pefts(size: str, targets: object, r: int) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    one_layer = replace(SIZES[size], num_layers=1)
    with torch.device("meta"):
        base = LlamaForCausalLM(config_of(one_layer))
        named = targets if isinstance(targets, str) else list(targets)
        model = get_peft_model(base, LoraConfig(r=r, target_modules=named))
    held = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    lora = Lora(r=r, target_modules=targets)
    assert adapter_weights(SIZES[size], lora) == SIZES[size].num_layers * held


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_the_real_shapes(size: str, double_quant: bool) -> None:
    """Codes, scales and books of each shape, as bitsandbytes' own quantization would make them.

    Held in the tests above for small shapes; here its rule is applied to each real one by hand.
    """
    geometry = SIZES[size]
    counted = weights(geometry, Quantization(double_quant=double_quant), Lora(), Memory())
    blocks = [out * into // 64 for out, into in geometry.linear_shapes.values()]
    scales = sum(b + 4 * -(-b // 256) + 4 + 4 * 256 if double_quant else 4 * b for b in blocks)
    assert counted.codes == geometry.num_linear_weights // 2
    assert counted.scales == geometry.num_layers * (scales + 7 * 4 * 16)
    bits = 8 * (counted.codes + counted.scales) / geometry.num_linear_weights
    assert bits == pytest.approx(4.127 if double_quant else 4.5, abs=2e-3)


def test_70b_as_measured() -> None:
    """Source: a 70B on the meta device, quantized layers and adapters counted."""
    big = SIZES["70b"]
    assert adapter_weights(big, Lora(r=64)) == 828_375_040
    assert (big.num_linear_weights, big.num_other_weights) == (68_451_041_280, 525_606_912)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("name", ["k_proj", "q_proj"])
def test_a_real_layer_is_what_bitsandbytes_makes(name: str, double_quant: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    out, into = SIZES["7b" if name == "q_proj" else "70b"].linear_shapes[name]
    packed, state = quantize_4bit(
        torch.zeros(out, into, dtype=torch.bfloat16),
        *(None, None, 64),
        compress_statistics=double_quant,
        quant_type="nf4",
        quant_storage=torch.bfloat16,
    )
    counted = quantized_linear(out, into, Quantization(double_quant=double_quant))
    assert counted.codes == held(packed)
    assert counted.scales == state_bytes(state)


def test_an_odd_layer_is_padded() -> None:
    # 3 x 5 weights: 8 bytes of codes in whole bf16 elements, one block.
    found = quantized_linear(3, 5, Quantization(double_quant=False))
    assert (found.codes, found.scales) == (8, 4 + 64)
