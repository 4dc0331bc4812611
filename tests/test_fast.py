"""Lean layers give PEFT's losses and gradients, keep less, and leave the rest alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_models import LENGTHS, lean, loss_and_gradients, model_of, row
from test_train import BF16

from train import attention, fast, fast_linear
from train.fast_layer import LEVELS
from train.steps import attending

WHOLE = ("quantization=null", "memory.precision=bf16")
CASES = [(level, cache) for level in LEVELS for cache in ("none", "all")]


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of any element, by the largest of its tensor."""
    assert found.keys() == expected.keys()
    assert all(bool(t.any()) for t in expected.values())
    return max(
        float((found[n].double() - expected[n].double()).abs().max() / expected[n].abs().max())
        for n in expected
    )


def error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Of all gradients together, by their norm."""
    names = [name for name in exact if name != "loss"]
    off = sum(float((found[n].double() - exact[n].double()).pow(2).sum()) for n in names)
    return (off / sum(float(exact[n].double().pow(2).sum()) for n in names)) ** 0.5


@pytest.mark.parametrize("base", [(), ("quantization=null",)], ids=["nf4", "whole"])
@pytest.mark.parametrize(("level", "cache"), CASES)
def test_in_fp32_it_is_peft(
    make_recipe, tiny_model: Path, level: int, cache: str, base: tuple[str, ...]
) -> None:
    make_recipe()
    expected = loss_and_gradients(model_of(tiny_model, *base), row())
    found = loss_and_gradients(lean(model_of(tiny_model, *base), level, cache), row())
    assert len(found) == 1 + 2 * 7 * 2
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("base", [(), ("quantization=null",)], ids=["nf4", "whole"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_drops_what_peft_drops(
    make_recipe, tiny_model: Path, level: int, base: tuple[str, ...], checkpointing: bool
) -> None:
    """From the same state of the generator, which is left in the same state."""
    make_recipe()
    found = []
    for build in (lambda m: m, lambda m: lean(m, level)):
        model = build(model_of(tiny_model, "lora.dropout=0.3", *base))
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        micro_batches = [loss_and_gradients(model, row(seed=seed)) for seed in (0, 0)]
        found.append([*micro_batches, {"next": torch.rand(3)}])
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert largest_difference(mine, theirs) < 1e-5
    assert not torch.equal(found[0][0]["loss"], found[0][1]["loss"])


@pytest.mark.parametrize("base", [BF16, WHOLE], ids=["nf4", "whole"])
@pytest.mark.parametrize(("level", "cache"), CASES)
def test_in_bf16_it_is_as_near_to_fp32_as_peft(
    make_recipe, tiny_model: Path, level: int, cache: str, base: tuple[str, ...]
) -> None:
    """Held against fp32 on the same NF4 weights: two roundings differ, neither is the right one."""
    from pressroom.nn.nf4 import compute_in

    make_recipe()
    exact_model = model_of(tiny_model, *base)
    compute_in(exact_model.get_base_model(), torch.float32)
    exact_model.forward = type(exact_model).forward.__get__(exact_model)  # without autocast
    exact = loss_and_gradients(exact_model, row())
    peft = loss_and_gradients(model_of(tiny_model, *base), row())
    found = loss_and_gradients(lean(model_of(tiny_model, *base), level, cache), row())
    assert {t.dtype for t in found.values()} == {torch.float32}
    assert 1e-4 < error(peft, exact) < 0.05
    assert error(found, exact) <= 1.25 * error(peft, exact)
    losses = [abs(float(f["loss"] - exact["loss"])) for f in (found, peft)]
    assert losses[0] <= max(1.25 * losses[1], 1e-3)


def test_codes_are_dequantized_to_what_is_computed_in(make_recipe, tiny_model: Path) -> None:
    """As bitsandbytes' forward does it, also where they were made in another dtype.

    Its backward pass then rounds the weights to that dtype; ours does not.
    """
    from pressroom.nn.nf4 import compute_in

    make_recipe()
    found = []
    for build in (lambda m: m, lean):
        model = model_of(tiny_model, *BF16)
        compute_in(model.get_base_model(), torch.float32)
        model.forward = type(model).forward.__get__(model)  # without autocast
        found.append(loss_and_gradients(build(model), row()))
    assert float(found[1]["loss"]) == pytest.approx(float(found[0]["loss"]), abs=1e-6)
    assert 1e-4 < largest_difference(found[1], found[0]) < 1e-2


@pytest.mark.parametrize("level", LEVELS)
def test_it_gives_the_same_bits_each_time(make_recipe, tiny_model: Path, level: int) -> None:
    make_recipe()
    model = lean(model_of(tiny_model, *BF16), level)
    first, second = (loss_and_gradients(model, row()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = loss_and_gradients(lean(model_of(tiny_model, *BF16), 0, "all"), row())
    assert all(torch.equal(first[name], other[name]) for name in first), "levels, cached or not"


@pytest.mark.parametrize("precision", [(), BF16], ids=["fp32", "bf16"])
def test_threads_change_no_bit(make_recipe, tiny_model: Path, precision: tuple[str, ...]) -> None:
    """A job goes on where it has other cores; PyTorch's own backward pass of softmax would not."""
    make_recipe()
    model = lean(model_of(tiny_model, *precision))
    batch, found = row((150, 3, 40, 1, 62, 119)), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(loss_and_gradients(model, batch))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("level", LEVELS)
def test_ten_steps_of_an_optimizer_lose_alike(make_recipe, tiny_model: Path, level: int) -> None:
    make_recipe()
    losses: list[list[float]] = []
    for build in (lambda m: m, lambda m: lean(m, level)):
        model = build(model_of(tiny_model))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-3)
        losses.append([])
        for step in range(10):
            losses[-1].append(float(loss_and_gradients(model, row(seed=step % 2))["loss"]))
            optimizer.step()
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)
    assert losses[0][9] < losses[0][1] - 0.05


def kept_bytes(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that a forward pass leaves for the backward pass, each storage once."""
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = attending(batch, model.get_base_model().config._attn_implementation)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs, use_cache=False).loss
    assert loss.requires_grad
    return sum(kept.values())


def bytes_a_token_and_layer(folder: Path, level: int | None) -> float:
    """From models of two layers and of four, so that what all layers share is left out."""
    from transformers import LlamaConfig, LlamaForCausalLM

    kept = []
    for layers in (2, 4):
        config = LlamaConfig.from_pretrained(folder, num_hidden_layers=layers)
        deep = folder.parent / f"deep-{layers}-{level}"
        LlamaForCausalLM(config).save_pretrained(deep)
        model = model_of(deep, *BF16)
        if level is not None:
            assert fast.speed_up(model, level=level).patched == layers
        kept.append(kept_bytes(model, row()))
    return (kept[1] - kept[0]) / 2 / sum(LENGTHS)


def test_what_is_kept_has_a_ceiling(make_recipe, tiny_model: Path, tmp_path: Path) -> None:
    """Of a token in a layer: the input, queries, keys, values, attention's output and logsumexp."""
    make_recipe()
    hidden, inner, queries, keys, heads, rank = 64, 128, 64, 32, 4, 4
    made = tmp_path / "model"
    made.symlink_to(tiny_model)
    norms, adapters = 2 * 4, 7 * 2 * rank
    level_2 = 2 * (hidden + 2 * queries + 2 * keys) + 4 * heads + norms + adapters
    ceilings = [level_2 + 2 * hidden + 4 * inner, level_2 + 2 * hidden, level_2]
    found = [bytes_a_token_and_layer(made, level) for level in LEVELS]
    plain = bytes_a_token_and_layer(made, None)
    for level in LEVELS:
        assert found[level] <= 1.02 * ceilings[level], level
    assert found[0] - found[1] == pytest.approx(4 * inner, rel=0.01)
    assert found[1] - found[2] == pytest.approx(2 * hidden, rel=0.01)
    assert found[0] < 0.6 * plain


def another_activation(model: Any) -> None:
    for layer in model.get_base_model().model.layers:
        layer.mlp.act_fn = torch.nn.GELU()


def trained_norm(model: Any) -> None:
    for layer in model.get_base_model().model.layers:
        layer.input_layernorm.weight.requires_grad_(True)


def hooked(model: Any) -> None:
    for layer in model.get_base_model().model.layers:
        layer.mlp.register_forward_hook(lambda *_: None)


def dense_attention(model: Any) -> None:
    attention.attach(model.get_base_model(), "dense")


def second_adapter(model: Any) -> None:
    from peft import LoraConfig

    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "other"])


def merged(model: Any) -> None:
    model.merge_adapter()


def switched_off(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def biased(model: Any) -> None:
    for layer in model.get_base_model().model.layers:
        layer.mlp.up_proj.get_base_layer().bias = torch.nn.Parameter(torch.zeros(128))


def with_dora(model: Any) -> None:
    for part in fast._projections(model.get_base_model().model.layers[0]):
        part.lora_variant["default"] = object()
    for part in fast._projections(model.get_base_model().model.layers[1]):
        part.lora_variant["default"] = object()


def another_dropout(model: Any) -> None:
    for layer in model.get_base_model().model.layers:
        layer.mlp.up_proj.lora_dropout["default"] = torch.nn.AlphaDropout(0.1)


def dropout_off(model: Any) -> None:
    for layer in model.get_base_model().model.layers:
        layer.mlp.up_proj.lora_dropout["default"].eval()


def zero3(model: Any) -> None:
    for layer in model.get_base_model().model.layers:
        layer.input_layernorm.weight.ds_id = 1


INELIGIBLE: dict[str, tuple[tuple[str, ...], Callable[[Any], None] | None, str]] = {
    "dropout": (("lora.dropout=0.1",), another_dropout, "another kind of dropout"),
    "dropout off": (("lora.dropout=0.1",), dropout_off, "its dropout is switched off"),
    "some linears": (
        ("lora.target_modules=[q_proj,v_proj]",),
        None,
        "a linear layer without adapter",
    ),
    "activation": ((), another_activation, "not SiLU"),
    "norm": ((), trained_norm, "norms are not a Llama's, or are trained"),
    "hooks": ((), hooked, "hooks inside of it"),
    "attention": ((), dense_attention, "attention is not told where articles begin"),
    "two adapters": ((), second_adapter, "not one adapter"),
    "merged": ((), merged, "merged or switched off"),
    "off": ((), switched_off, "merged or switched off"),
    "bias": ((), biased, "a bias"),
    "dora": ((), with_dora, "another kind of adapter"),
    "zero3": ((), zero3, "ZeRO-3"),
}


@pytest.mark.parametrize("case", INELIGIBLE)
def test_what_it_does_not_know_stays_as_it_is(make_recipe, tiny_model: Path, case: str) -> None:
    make_recipe()
    overrides, change, reason = INELIGIBLE[case]
    model = model_of(tiny_model, *overrides)
    if change:
        change(model)
    report = fast.speed_up(model)
    assert (report.patched, report.skipped) == (0, 2)
    (told,) = report.reasons
    assert reason in told
    assert f"0 of 2 decoder layers are fused; 2 stay plain: {told}" == str(report)
    assert not any("forward" in vars(layer) for layer in model.get_base_model().model.layers)


def test_what_changes_later_falls_back(make_recipe, tiny_model: Path, monkeypatch) -> None:
    """An adapter that is merged, switched off or taken off after the layers were sped up."""
    make_recipe()
    model, plain = lean(model_of(tiny_model), cache="all"), model_of(tiny_model)
    expected = loss_and_gradients(plain, row())
    calls: list[int] = []
    original = fast_linear.Use.of
    monkeypatch.setattr(fast_linear.Use, "of", lambda *a: (calls.append(1), original(*a))[1])
    assert largest_difference(loss_and_gradients(model, row()), expected) < 1e-5
    assert len(calls) == 14
    inputs = attending(row(), "packed_blocks")
    with torch.no_grad():
        for changed in (model, plain):
            changed.merge_adapter()
        losses = [float(m(**inputs, use_cache=False).loss) for m in (model, plain)]
        assert losses[0] == losses[1]
        with model.disable_adapter(), plain.disable_adapter():
            losses = [float(m(**inputs, use_cache=False).loss) for m in (model, plain)]
            assert losses[0] == losses[1]
        bases = [m.unload() for m in (model, plain)]
        losses = [float(b.train()(**inputs, use_cache=False).loss) for b in bases]
        assert losses[0] == losses[1]
    assert len(calls) == 14


def test_a_cached_weight_is_dequantized_once(make_recipe, tiny_model: Path, monkeypatch) -> None:
    import bitsandbytes as bnb

    make_recipe()
    calls: list[int] = []
    original = bnb.functional.dequantize_4bit

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(bnb.functional, "dequantize_4bit", counted)
    for cache, before, after in (("none", 0, 2 * 7 * 2 - 3), ("all", 2 * 7, 0)):
        calls.clear()
        model = lean(model_of(tiny_model), cache=cache)
        assert len(calls) == before
        calls.clear()
        loss_and_gradients(model, row())
        assert len(calls) == after  # the first layer's input needs no gradient
    size = sum(
        p.out_features * p.in_features for p in fast._projections(model.model.model.layers[0])
    )
    assert fast.speed_up(model, is_cached=True).cached == 2 * 4 * size
    assert fast.speed_up(model).cached == 0


def test_evaluation_and_generation_are_the_models_own(
    make_recipe, tiny_model: Path, monkeypatch
) -> None:
    make_recipe()
    monkeypatch.setattr(fast_linear.Use, "of", None)
    model, plain = lean(model_of(tiny_model)).eval(), model_of(tiny_model).eval()
    ids = row()["input_ids"][:, :20]
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    inputs = attending(row(), "packed_blocks")
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        assert torch.equal(
            model.generate(input_ids=ids, **options), plain.generate(input_ids=ids, **options)
        )
        assert float(model(**inputs).loss) == float(plain(**inputs).loss)


def test_modules_and_what_is_saved_stay_what_they_were(
    make_recipe, tiny_model: Path, tmp_path: Path
) -> None:
    make_recipe()
    model, plain = lean(model_of(tiny_model), cache="all"), model_of(tiny_model)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    mine, theirs = model.state_dict(), plain.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n].view(torch.uint8), theirs[n].view(torch.uint8)) for n in mine)
    fast.slow_down(model)
    found, expected = loss_and_gradients(model, row()), loss_and_gradients(plain, row())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_full_checkpointing_runs_lean_layers_again(make_recipe, tiny_model: Path) -> None:
    make_recipe()
    expected = loss_and_gradients(lean(model_of(tiny_model, *BF16)), row())
    model = lean(model_of(tiny_model, *BF16))
    for use_reentrant in (False, True):
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        if use_reentrant:
            model.enable_input_require_grads()
        found = loss_and_gradients(model, row())
        assert all(torch.equal(found[name], expected[name]) for name in found)
        if not use_reentrant:
            kept = kept_bytes(model, row())
    assert kept < 0.4 * kept_bytes(lean(model_of(tiny_model, *BF16)), row())
