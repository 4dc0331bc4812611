"""On a CUDA device: the same numbers as on the CPU, and attention that keeps articles apart.

Run by `make test-gpu`. Nothing here is compared with a clock.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from training import adapter, losses, metrics, train

from pressroom.nn.nf4 import load_base
from pressroom.train_sections import Quantization

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BF16 = (
    "memory.precision=bf16",
    "quantization.compute_dtype=bfloat16",
    "quantization.storage_dtype=bfloat16",
)
FP16 = (
    "memory.precision=fp16",
    "quantization.compute_dtype=float16",
    "quantization.storage_dtype=float16",
)


def step_on(device: str, folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and adapter gradients of one NF4 step in fp32, quantized on its own device."""
    from peft import LoraConfig, get_peft_model

    quantization = Quantization(compute_dtype="float32", storage_dtype="float32")
    base = load_base(folder, quantization, "fp32", torch.device(device))
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", lora_alpha=8))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).to(device)
    ids = torch.randint(3, 512, (2, 64), generator=generator).to(device)
    loss = model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss), gradients


def test_an_nf4_step_is_the_cpus(tiny_model: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    loss, gradients = step_on("cuda:0", tiny_model)
    expected, reference = step_on("cpu", tiny_model)
    assert loss == pytest.approx(expected, abs=1e-3)
    assert gradients.keys() == reference.keys()
    for name, gradient in reference.items():
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        assert float(difference) < 1e-2, name


@pytest.mark.parametrize("precision", [BF16, FP16], ids=["bf16", "fp16"])
def test_it_learns_with_fp32_adapters_and_says_its_memory(
    make_recipe, precision: tuple[str, ...]
) -> None:
    if precision is BF16 and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this card has no bf16")
    make_recipe()
    run = train(*precision, "optimizer.num_steps=12")
    assert losses(run)[12] < losses(run)[1] - 0.1
    assert {t.dtype for t in adapter(run).values()} == {torch.float32}
    peak = max(row["peak_memory_gib"] for row in metrics(run) if "loss" in row)
    assert 0 < peak < 2


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2", "flex_attention"])
def test_packed_equals_unpacked(tiny_model: Path, attention: str) -> None:
    """Logits of two articles in one row are those of each alone."""
    half = attention == "flash_attention_2"
    precision: Any = "bf16" if half else "fp32"
    model = load_base(tiny_model, None, precision, torch.device("cuda:0"))
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        pytest.skip(f"{attention} is not here: {str(error).splitlines()[0]}")
    generator = torch.Generator().manual_seed(0)
    articles = [torch.randint(3, 512, (n,), generator=generator).cuda() for n in (70, 58)]
    position_ids = torch.cat([torch.arange(len(a), device="cuda") for a in articles])[None]
    with torch.no_grad():
        row = torch.cat(articles)[None]
        packed = model(input_ids=row, position_ids=position_ids, use_cache=False).logits[0].float()
        alone = torch.cat([model(input_ids=a[None], use_cache=False).logits[0] for a in articles])
    assert float((packed - alone.float()).abs().max()) < (5e-2 if half else 1e-3)


def packed_row() -> dict[str, Any]:
    """A collated micro-batch of one packed row, as the trainer moves it."""
    from fast_models import row

    batch = row((200, 3, 40, 70, 199))
    return {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


@pytest.mark.parametrize("backend", ["varlen", "fa2", "flex", "blocks"])
@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_attention_and_lean_layers_are_as_near_to_fp32_as_a_dense_mask(
    make_recipe, tiny_model: Path, backend: str, level: int | None
) -> None:
    """Loss and every adapter gradient in bf16, against fp32 on the same weights, on the card."""
    from fast_models import loss_and_gradients, model_of

    from pressroom.nn.nf4 import compute_in
    from train import attention, fast

    gpu = torch.device("cuda:0")
    if why := attention.missing(backend, gpu, torch.bfloat16):
        pytest.skip(f"{backend}: {why}")
    make_recipe()

    def gradients(name: str, dtype: torch.dtype, level: int | None) -> dict[str, torch.Tensor]:
        model = model_of(tiny_model, *BF16, backend=name, device=gpu)
        if dtype == torch.float32:
            compute_in(model.get_base_model(), dtype)
            model.forward = type(model).forward.__get__(model)  # without autocast
        if level is not None:
            assert fast.speed_up(model, level=level).patched == 2
        return loss_and_gradients(model, packed_row())

    def off(found: dict[str, torch.Tensor]) -> float:
        names = [name for name in exact if name != "loss"]
        missed = sum(float((found[n] - exact[n]).double().pow(2).sum()) for n in names)
        return (missed / sum(float(exact[n].double().pow(2).sum()) for n in names)) ** 0.5

    exact = gradients("dense", torch.float32, None)
    plain = gradients("dense", torch.bfloat16, None)
    found = gradients(backend, torch.bfloat16, level)
    assert 1e-4 < off(plain) < 0.05
    assert off(found) <= 1.25 * off(plain)
    assert abs(float(found["loss"] - exact["loss"])) < 1e-2
