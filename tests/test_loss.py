"""The loss in chunks, its gradient made forward, is PyTorch's cross entropy over whole logits."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from train import loss


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    monkeypatch.setattr(loss, "_CHUNK_TOKENS", 7)  # the last chunk is a part of one
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    made.lm_head.weight.requires_grad_(False)
    made.lm_head.weight.mul_(20)  # far from uniform
    loss.score_in_forward(made, lambda weight: nullcontext())
    return made


def ids() -> torch.Tensor:
    return torch.randint(0, 96, (1, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("places", [list(range(23)), [0, 5, 6, 21], list(range(7)), []])
@pytest.mark.parametrize("scale", [None, 0.03])
def test_loss_and_gradients_are_cross_entropys(
    model: LlamaForCausalLM, places: list[int], scale: float | None
) -> None:
    trained = torch.tensor(places, dtype=torch.long)
    targets = ids()[0, 1:][trained]
    scaled = None if scale is None else torch.tensor(scale)
    ours = model(input_ids=ids(), trained=trained, targets=targets, scale=scaled).loss
    ours.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model(input_ids=ids()).logits[0, trained]
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * (scale or 1)
    plain.backward()
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert len(found) > 5


def test_rounding_is_cross_entropys_in_bf16(model: LlamaForCausalLM) -> None:
    head = model.lm_head.weight.bfloat16()
    hidden = torch.randn(24, 32, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 96, (24,))
    loss._HeadNLL.apply(hidden, head, targets, torch.tensor(1.0)).backward()
    found, hidden.grad = hidden.grad, None
    logits = (hidden @ head.T).float()
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    torch.testing.assert_close(found, hidden.grad, rtol=1e-2, atol=1e-2)


def test_whole_logits_never_exist(model: LlamaForCausalLM) -> None:
    class Widest(TorchDispatchMode):
        rows = 0  # of what has a column a word; the head itself has 32

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            if isinstance(out, torch.Tensor) and out.shape[1:] == (96,) and len(out) != 32:
                self.rows = max(self.rows, out.shape[0])
            return out

    places = torch.arange(23)
    with Widest() as widest:
        model(input_ids=ids(), trained=places, targets=ids()[0, 1:]).loss.backward()
    assert widest.rows == 7


def test_without_targets_the_forward_is_the_models_own(model: LlamaForCausalLM) -> None:
    own = LlamaForCausalLM(model.config)
    own.load_state_dict(model.state_dict())
    assert torch.equal(model(input_ids=ids()).logits, own(input_ids=ids()).logits)
    with torch.no_grad():
        places = torch.arange(23)
        scored = model(input_ids=ids(), trained=places, targets=ids()[0, 1:])
        assert scored.loss.item() == pytest.approx(
            23 * own(input_ids=ids(), labels=ids()).loss.item(), rel=1e-5
        )
