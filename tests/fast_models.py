"""Models for the tests of lean layers: a small Llama with drawn adapters, and one packed row."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from train import attention, fast
from train.loss import score_in_forward
from train.model import with_adapters
from train.steps import Collator, attending

LENGTHS = (150, 3, 40, 1, 62)
CPU = torch.device("cpu")


def row(lengths: tuple[int, ...] = LENGTHS, seed: int = 3) -> dict[str, Any]:
    """A collated micro-batch of one packed row of random ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 512, (sum(lengths),), generator=generator).tolist()
    collate = Collator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
    return collate([{"input_ids": ids, "labels": ids, "seq_lengths": list(lengths)}])


def model_of(
    folder: Path, *overrides: str, backend: str = "blocks", device: torch.device = CPU
) -> Any:
    """The recipe's model in training, its loss in forward, its adapters' B not zero."""
    recipe = Recipe.load("recipe.yaml", overrides)
    base = load_base(folder, recipe.quantization, recipe.memory.precision, device)
    model = with_adapters(base, recipe)
    score_in_forward(base, lambda weight: nullcontext())
    attention.attach(base, backend)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The mean NLL, by the name `loss`, and every adapter's gradient."""
    inputs = attending(batch, model.get_base_model().config._attn_implementation)
    scale = torch.tensor(1 / len(batch["targets"]), device=batch["targets"].device)
    loss = model(**inputs, scale=scale, use_cache=False).loss
    model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), **found}


def lean(model: Any, level: int = 0, cache: str = "none") -> Any:
    """The same model, sped up; every layer of it."""
    report = fast.speed_up(model, level=level, is_cached=cache == "all")
    assert (report.patched, report.skipped, report.reasons) == (2, 0, {}), report
    return model
