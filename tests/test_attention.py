"""Every way of attending: articles see themselves only, and gradients are those of a dense mask."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data_prep.prepare import prepare
from pressroom.console import UserError
from pressroom.nn.nf4 import load_base
from train import articles, attention, attention_backends, attention_cpu, data, model
from train.steps import Collator, attending

CPU = torch.device("cpu")
LENGTHS = [150, 3, 40, 1, 90, 130]


def micro_batch(*lengths: int) -> dict[str, Any]:
    """A collated micro-batch of one row."""
    ids = torch.randint(3, 512, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    row = {"input_ids": ids.tolist(), "labels": ids.tolist(), "seq_lengths": list(lengths)}
    return Collator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))([row])


def varlen_by_hand(q, k, v, starts, also_starts, longest, also_longest, **options: Any) -> Any:
    """What `varlen_attn` of torch 2.13 promises, slowly."""
    assert torch.equal(starts, also_starts)
    assert starts.dtype == torch.int32
    assert longest == also_longest == int(starts.diff().max())
    assert options["window_size"] == (-1, 0)
    assert options["enable_gqa"]
    shared = q.shape[1] // k.shape[1]
    out = []
    for i, j in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        score = torch.einsum("qhw,khw->hqk", q[i:j], k[i:j].repeat_interleave(shared, 1))
        score = (score * options["scale"]).masked_fill(
            torch.ones(j - i, j - i).triu(1).bool(), -torch.inf
        )
        values = v[i:j].repeat_interleave(shared, 1)
        out.append(torch.einsum("hqk,khw->qhw", score.softmax(-1), values))
    return torch.cat(out)


def flash_by_hand(*tensors: Any, causal: bool, softmax_scale: float) -> Any:
    assert causal
    options = {"window_size": (-1, 0), "enable_gqa": True, "scale": softmax_scale}
    return varlen_by_hand(*tensors, **options)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention runs on GPUs alone: by hand here, with the same arguments."""
    import sys
    from types import SimpleNamespace

    from torch.nn.attention import varlen

    def varlen_attn(q, k, v, a, b, c, d, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        options = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        return varlen_by_hand(q, k, v, a, b, c, d, **options)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    package = SimpleNamespace(flash_attn_varlen_func=flash_by_hand)
    monkeypatch.setitem(sys.modules, "flash_attn", package)


def run(tiny_model: Path, backend: str, lengths: list[int]) -> tuple[Any, dict[str, Any]]:
    """Hidden states of a packed row, and the gradients of all its weights but the embeddings'."""
    made = load_base(tiny_model, None, "fp32", CPU).train()
    if backend != "flex":  # which has no backward pass on a CPU
        made.model.layers.requires_grad_(True)
    attention.attach(made, backend)
    batch = attending(micro_batch(*lengths), made.config._attn_implementation)
    del batch["trained"], batch["targets"]
    hidden = made.model(**batch, use_cache=False).last_hidden_state
    if backend != "flex":
        upstream = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        (hidden * upstream).sum().backward()
    gradients = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return hidden.detach(), gradients


@pytest.mark.parametrize("backend", list(attention_backends.BACKENDS))
@pytest.mark.parametrize("lengths", [LENGTHS, [200], [1] * 5, [128, 127, 2]], ids=str)
def test_every_backend_is_the_dense_mask(
    stand_ins: None, tiny_model: Path, backend: str, lengths: list[int]
) -> None:
    expected, of_dense = run(tiny_model, "dense", lengths)
    found, gradients = run(tiny_model, backend, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if backend != "flex":
        assert len(gradients) == len(of_dense) == 18
        for name, gradient in gradients.items():
            scale = float(of_dense[name].abs().max())
            assert float((gradient - of_dense[name]).abs().max()) < 1e-5 * max(scale, 1), name


@pytest.mark.parametrize("scores", [attention_cpu.SCORES, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_attention_on_a_cpu_is_sdpa(
    monkeypatch, dtype: torch.dtype, key_heads: int, scores: int
) -> None:
    """In bf16 about as near to fp32 as SDPA; also where few queries have their scores at a time."""
    monkeypatch.setattr(attention_cpu, "SCORES", scores)
    told = attending(micro_batch(*LENGTHS), "packed_blocks")["articles"]
    sizes, masks = [run.size for run in told.runs], told.masks
    torch.manual_seed(0)
    shapes = [(sum(LENGTHS), heads, 16) for heads in (4, key_heads, key_heads)]
    drawn = [torch.randn(shape).to(dtype) for shape in shapes]
    upstream = torch.randn(shapes[0]).to(dtype)

    def outputs(attend: Any, kind: torch.dtype) -> list[torch.Tensor]:
        inputs = [t.detach().to(kind).requires_grad_() for t in drawn]
        out = attend(*inputs, sizes, masks, 0.25)
        assert out.dtype == kind
        return [out, *torch.autograd.grad(out, inputs, upstream.to(kind))]

    exact = outputs(attention_backends.by_sdpa, torch.float32)
    found = outputs(attention_cpu.Runs.apply, dtype)
    theirs = outputs(attention_backends.by_sdpa, dtype)
    for ours, other, wanted in zip(found, theirs, exact, strict=True):
        off, theirs_off = (float((t.detach().float() - wanted).norm()) for t in (ours, other))
        assert off <= max(1.25 * theirs_off, 1e-5 * float(wanted.norm()))


def test_no_mask_is_as_wide_as_the_micro_batch() -> None:
    batch = attending(micro_batch(*LENGTHS, *LENGTHS), "packed_blocks")
    masks = [mask for mask in batch["articles"].masks if mask is not None]
    assert len(masks) == 2
    assert max(mask.shape[-1] for mask in masks) < 2 * articles.RUN
    assert batch["attention_mask"].numel() == 0
    assert attending(micro_batch(3, 4), "packed_varlen")["articles"].masks == []


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [([500], [500]), ([60, 60, 60, 60], [180, 60]), ([10, 400, 10, 10], [10, 400, 20]), ([1], [1])],
)
def test_runs_are_the_articles_again(lengths: list[int], sizes: list[int]) -> None:
    found = articles.runs(lengths)
    assert [run.size for run in found] == sizes
    assert [run.is_one for run in found] == [run.size in lengths for run in found]


def test_without_articles_attention_is_transformers_own(tiny_model: Path) -> None:
    """Single articles, padding on the left, and a cache: evaluation and generation."""
    made = load_base(tiny_model, None, "fp32", CPU)
    ids = torch.randint(3, 512, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "use_cache": True}
    outputs = []
    for backend in ("dense", "blocks"):
        attention.attach(made, backend)
        with torch.no_grad():
            padded = made(input_ids=ids, attention_mask=mask, use_cache=False).logits
            alone = made(input_ids=ids, use_cache=False).logits
            text = made.generate(input_ids=ids, attention_mask=mask, **options)
        outputs.append((padded, alone, text))
    assert all(torch.equal(dense, ours) for dense, ours in zip(*outputs, strict=True))


def test_the_best_that_is_here_is_chosen_and_what_is_not_is_told(monkeypatch) -> None:
    assert attention.choose("auto", CPU, torch.bfloat16) == "blocks"
    message = "speed.attention: varlen: it needs a GPU; here there is blocks"
    with pytest.raises(UserError, match=message):
        attention.choose("varlen", CPU, torch.bfloat16)
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(attention, "find_spec", lambda name: name != "flash_attn")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert attention.choose("auto", gpu, torch.bfloat16) == "varlen"
    assert attention.choose("auto", gpu, torch.float32) == "flex"
    with pytest.raises(UserError, match="flash_attn is not installed; here there is varlen, flex"):
        attention.choose("fa2", gpu, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    assert attention.choose("auto", gpu, torch.float16) == "flex"
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    assert attention.choose("auto", gpu, torch.float16) == "blocks"
    with pytest.raises(UserError, match="needs an Ampere or newer, not a T4"):
        attention.choose("varlen", gpu, torch.float16)


@pytest.mark.parametrize("backend", ["dense", *attention_backends.BACKENDS])
def test_packed_and_separate_articles_lose_alike(
    stand_ins: None, make_recipe, tiny_model: Path, backend: str
) -> None:
    """On the loss of the trainer, of two real rows in one micro-batch."""
    from contextlib import nullcontext

    from pressroom.nn.loss import token_nll
    from train.loss import score_in_forward

    recipe = make_recipe()
    rows = data.load_rows(prepare(recipe), "train")
    built = model.build(recipe, tiny_model, CPU)
    torch.manual_seed(0)
    for name, parameter in built.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    base = built.get_base_model()
    separate, count = 0.0, 0
    for row in (rows[0], rows[1]):
        start = 0
        for length in row["seq_lengths"]:
            piece = slice(start, start + length)
            ids, labels = (torch.tensor([row[c][piece]]) for c in ("input_ids", "labels"))
            separate += float(token_nll(built.eval(), ids, labels).sum())
            start, count = start + length, count + 1
    assert count >= 4
    score_in_forward(base, lambda weight: nullcontext())
    attention.attach(base, backend)
    collate = Collator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
    inputs = attending(collate([rows[0], rows[1]]), base.config._attn_implementation)
    with torch.no_grad():
        packed = float(built.train()(**inputs, use_cache=False).loss)
    assert packed == pytest.approx(separate, rel=1e-5)
