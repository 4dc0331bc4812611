"""Llama's arithmetic against published and counted figures."""

import json
from pathlib import Path

import pytest

from pressroom.console import UserError
from pressroom.geometry import SIZES, Geometry, nf4_bytes


@pytest.mark.parametrize(
    ("size", "weights", "linear"),
    [
        ("7b", 6_738_415_616, 6_476_005_376),
        ("13b", 13_015_864_320, 12_687_769_600),
        ("70b", 68_976_648_192, 68_451_041_280),
    ],
)
def test_llama2_parameters(size: str, weights: int, linear: int) -> None:
    assert SIZES[size].num_weights == weights
    assert SIZES[size].num_linear_weights == linear


def test_lora_parameters() -> None:
    assert SIZES["70b"].num_lora_weights(64) == 828_375_040
    assert SIZES["7b"].num_lora_weights(16) == 39_976_960


def test_counted_on_a_real_model(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    geometry = Geometry.of(tiny_model)
    assert geometry.num_weights == sum(p.numel() for p in model.parameters())
    shapes = {
        name.rpartition(".")[2]: tuple(module.weight.shape)
        for name, module in model.model.layers[0].named_modules()
        if hasattr(module, "out_features")
    }
    assert geometry.linear_shapes == shapes


def test_nf4_takes_4_127_bits() -> None:
    weights = SIZES["70b"].num_linear_weights
    assert nf4_bytes(weights, double_quant=True) == pytest.approx(35.31e9, rel=1e-3)
    assert nf4_bytes(64 * 256, double_quant=True) * 8 / (64 * 256) == pytest.approx(4.127, abs=1e-3)
    assert nf4_bytes(64, double_quant=False) * 8 / 64 == 4.5


def test_nf4_bytes_are_those_of_bitsandbytes() -> None:
    import bitsandbytes as bnb
    import torch

    weight = torch.randn(512, 512)
    for double_quant in (True, False):
        packed, state = bnb.functional.quantize_4bit(
            weight, quant_type="nf4", compress_statistics=double_quant
        )
        held = packed.nbytes + state.absmax.nbytes
        held += state.state2.absmax.nbytes if double_quant else 0
        assert nf4_bytes(weight.numel(), double_quant=double_quant) == held


def test_flops() -> None:
    # 790 TFLOP/s without recomputation: 27,673 tokens/s of 7B at 2048, with 7 s d L of hardware.
    seven = SIZES["7b"]
    weights = seven.num_linear_weights + seven.num_head_weights
    assert seven.model_flops_per_token(2048) == 4 * weights + 6 * 2048 * 4096 * 32


def test_what_is_no_llama(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="model_type is 'gpt2'"):
        Geometry.of(tmp_path)
    with pytest.raises(UserError, match=r"neither a size \(7b, 13b, 70b\) nor a model folder"):
        Geometry.of(tmp_path / "none")
