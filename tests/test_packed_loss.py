"""Packed rows: no article sees another, so packed and separate articles lose alike."""

from pathlib import Path

import pytest
import torch
from training import losses, train

from data_prep.prepare import prepare
from generate import held_out
from pressroom.dataset import Manifest
from pressroom.nn.loss import token_nll
from pressroom.nn.nf4 import load_base


@pytest.fixture
def packed(make_recipe, tiny_model: Path):
    """A trained model's trainer pieces: the TRL collator, a model with adapters, two rows."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from train import data, model

    recipe = make_recipe()
    rows = data.load_rows(prepare(recipe), "train")
    built = model.build(recipe, tiny_model, torch.device("cpu")).eval()
    torch.manual_seed(0)
    for name, parameter in built.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    return built, collator([rows[0], rows[1]]), [rows[0], rows[1]]


def packed_nll(model, batch) -> torch.Tensor:
    """NLL of each position [1, T] as the trainer computes it."""
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
    labels = batch["labels"][:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits[0, :-1].float(), labels[0], reduction="none", ignore_index=-100
    )
    return torch.cat([torch.zeros(1), nll])[None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_equals_unpacked_loss(packed, attention: str) -> None:
    model, batch, rows = packed
    model.get_base_model().set_attn_implementation(attention)
    separate = []
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:
            ids = torch.tensor([row["input_ids"][start : start + length]])
            labels = torch.tensor([row["labels"][start : start + length]])
            separate.append(token_nll(model, ids, labels)[0])
            start += length
    assert len(separate) >= 4
    difference = (packed_nll(model, batch)[0] - torch.cat(separate)).abs().max()
    assert float(difference) < 1e-5


def test_no_article_sees_another(packed) -> None:
    model, batch, rows = packed
    before = packed_nll(model, batch)
    first = rows[0]["seq_lengths"][0]
    batch["input_ids"][0, 1:first] = 5
    after = packed_nll(model, batch)
    assert not torch.equal(before[0, 1:first], after[0, 1:first])
    assert float((before[0, first:] - after[0, first:]).abs().max()) < 1e-6


def test_the_trainers_loss_is_the_mean_over_trained_tokens(make_recipe, tiny_model: Path) -> None:
    # One step over all rows, before any learning: the base's own loss.
    rows = Manifest.read(prepare(make_recipe())).rows("train")
    batch = (f"batch.global_batch_size={rows}", "batch.micro_batch_size=1")
    run = train(*batch, "optimizer.learning_rate=1e-9", "optimizer.num_steps=1")
    quantization = run.load_recipe().quantization
    base = load_base(tiny_model, quantization, "fp32", torch.device("cpu"))
    articles = held_out.tokens(run.dataset, "train")
    total, count = 0.0, 0
    for _, ids, labels in held_out.batches(articles, 4, torch.device("cpu")):
        total += float(token_nll(base, ids, labels).sum())
        count += int((labels[:, 1:] != -100).sum())
    (loss,) = losses(run).values()
    assert loss == pytest.approx(total / count, abs=1e-5)
