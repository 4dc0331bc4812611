"""A streamed merge is the merge in one memory, is proven as such, and says where it is from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from click.testing import CliRunner
from huggingface_hub import ModelCard
from merging import (
    CPU,
    in_one_memory,
    merge_run,
    merged_tensors,
    quantization,
    save_adapter,
    save_base,
    source_of,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training import train
from transformers import AutoModelForCausalLM

from generate import commands, merge_proof, merge_rows
from generate.held_out import tokens
from generate.merge import Options, merge
from generate.merge_layers import Runner, as_trained
from generate.merge_plan import plan
from generate.tuned import load_tuned
from pressroom.console import UserError
from pressroom.nn import base_rows, pieces
from pressroom.nn.base_rows import BaseRows, whole
from pressroom.nn.nf4 import compute_in
from pressroom.nn.pieces import empty_model
from pressroom.quantized_base import Codes
from pressroom.train_sections import Quantization
from train import quantize

BF16 = {
    "memory": {"precision": "bf16"},
    "quantization": {"compute_dtype": "bfloat16", "storage_dtype": "bfloat16"},
}


@pytest.mark.parametrize("shape", [(64, 64), (3, 192), (100, 36), (1, 130), (513, 320), (5, 5)])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_rows_are_those_of_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch,
    storage: Any,
    quant_type: Any,
    double_quant: bool,
    shape: tuple[int, int],
) -> None:
    if storage == "bfloat16" and shape[0] * shape[1] % 4:
        pytest.skip("such codes do not fill 16-bit numbers")
    monkeypatch.setattr(base_rows, "SLICE", 2**12)
    torch.manual_seed(0)
    how = Quantization(quant_type=quant_type, double_quant=double_quant, storage_dtype=storage)
    codes, state = pieces.quantize(torch.randn(shape), how, torch.bfloat16, CPU)
    rows = base_rows._dequantized(codes, state, CPU)
    streamed = whole(rows, shape)
    state.dtype = torch.float32
    assert torch.equal(streamed, dequantize_4bit(codes, state))
    if shape == (513, 320):
        assert len(base_rows.slices(shape)) == 3


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
def test_codes_made_again_are_those_on_disk(home: Path, source: torch.dtype) -> None:
    base = save_base(home / "base", source)
    how = quantization()
    quantized = frozenset(
        f"{n}.weight"
        for n, _ in empty_model(base, None, "bf16").named_modules()
        if n.endswith("_proj")
    )

    def weights() -> dict[str, torch.Tensor]:
        rows = BaseRows(base, how, "bf16", CPU, quantized)
        shapes = {n: tuple(p.shape) for n, p in empty_model(base, None, "bf16").named_parameters()}
        return {name: whole(rows.open(name), shape) for name, shape in shapes.items()}

    again = weights()
    place = quantize.make(Codes(base, how, "bf16"))
    on_disk = weights()
    assert BaseRows(base, how, "bf16", CPU, quantized).files.folder == place
    assert len(again) == 3 * 9 + 3
    assert all(torch.equal(again[name], on_disk[name]) for name in again)
    untouched = load_file(next(p for p in base.glob("*.safetensors") if "00003" in p.name))
    name = next(n for n in untouched if n.endswith("down_proj.weight"))
    assert not torch.equal(again[name], untouched[name].float())


CASES: dict[str, dict[str, Any]] = {
    "codes": {"how": quantization(), "codes": True},
    "codes made again": {"how": quantization(double_quant=False)},
    "fp4": {"how": quantization(quant_type="fp4"), "codes": True},
    "not quantized": {},
    "fp32 base": {"dtype": torch.float32, "how": quantization()},
    "tied": {"shape": {"tie_word_embeddings": True}, "how": quantization()},
    "some layers": {"targets": ("q_proj", "up_proj"), "how": quantization()},
    "rslora": {"config": {"use_rslora": True}},
    "original": {"how": quantization(), "base_weights": "original"},
    "fp32 out": {"how": quantization(), "out": "float32"},
    "fp16": {"how": quantization("fp16"), "precision": "fp16", "out": "float16"},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_streamed_merge_is_that_in_one_memory(
    home: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    """Every tensor: equal, but where fp32 sums in another order were rounded apart."""
    monkeypatch.setattr(base_rows, "SLICE", 2**12)
    base = save_base(home / "base", case.get("dtype", torch.bfloat16), **case.get("shape", {}))
    targets = {"targets": case["targets"]} if "targets" in case else {}
    adapter = save_adapter(home / "adapter", base, **targets, **case.get("config", {}))
    source = source_of(adapter, base, case.get("how"), case.get("precision", "bf16"))
    if case.get("codes"):
        quantize.make(Codes(base, source.quantization, source.precision))
    weights = case.get("base_weights", "dequantized")
    options = Options(base_weights=weights, dtype=case.get("out"), shard_size="60KB", verify=False)
    merge(source, home / "merged", options)
    written = merged_tensors(home / "merged")
    expected = dict(in_one_memory(source, weights).named_parameters())
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == getattr(torch, case.get("out") or "bfloat16")
        if written[name].dtype == torch.float32:
            assert torch.allclose(written[name], tensor, atol=1e-6, rtol=1e-6), name
            continue
        rounded = tensor.to(written[name].dtype)
        steps = written[name].view(torch.int16).int() - rounded.view(torch.int16).int()
        assert steps.abs().max() <= 1, name
        assert (steps != 0).float().mean() < 1e-3, name


def test_the_files_are_standard(home: Path) -> None:
    base = save_base(home / "base")
    source = source_of(save_adapter(home / "adapter", base), base, quantization())
    merge(source, home / "many", Options(shard_size="60KB"))
    merge(source, home / "one", Options())
    names = sorted(p.name for p in (home / "many").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((home / "many" / "model.safetensors.index.json").read_text())
    for name in names:
        path = home / "many" / name
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert {index["weight_map"][key] for key in file.keys()} == {name}  # noqa: SIM118
            held = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        assert held <= 60_000
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert [p.name for p in (home / "one").glob("*.safetensors")] == ["model.safetensors"]
    many, one = (AutoModelForCausalLM.from_pretrained(home / n) for n in ("many", "one"))
    assert many.dtype == one.dtype == torch.bfloat16
    assert not hasattr(many.config, "quantization_config")
    ids = torch.arange(3, 40)[None]
    assert torch.equal(many(input_ids=ids).logits, one(input_ids=ids).logits)
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for t in merged_tensors(home / "one").values()
    )


def test_a_tensor_larger_than_a_shard_has_its_own() -> None:
    shapes = {"a": (3, 4), "b": (100, 100), "c": (8,), "d": (2, 2)}
    shards = plan(shapes, torch.float32, "0.08KB")
    assert [[p.name for p in shard.tensors] for shard in shards] == [["b"], ["a", "c"], ["d"]]
    for shard in shards:
        assert shard.num_bytes > len(shard.header)
        assert shard.tensors[0].offset == len(shard.header)


@pytest.mark.parametrize("how", [quantization(), None], ids=["nf4", "not quantized"])
def test_layers_one_by_one_give_the_logits_of_the_model(make_recipe, how: Any) -> None:
    make_recipe(**BF16)
    run = train("optimizer.learning_rate=3e-2", *([] if how else ["quantization=null"]))
    from generate.merge import source_of as of_run

    source = of_run(run.adapter, run)
    ids = [article.ids for article in tokens(run.dataset)]
    tuned = load_tuned(run, run.load_recipe(), CPU)
    compute_in(tuned, torch.float32)
    with torch.no_grad():
        expected = [tuned(input_ids=torch.tensor([own])).logits[0] for own in ids]
        opened = source.opened(CPU)
        base = opened.base("dequantized")
        runner = Runner(empty_model(source.base, None, "fp32"), ids, [0, 1], CPU, int)
        found = list(
            runner.logits(
                lambda name: whole(base.open(name), opened.shapes[name]), as_trained(source, CPU)
            )
        )
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_a_wrong_merge_is_refused_and_leaves_nothing(make_recipe, monkeypatch) -> None:
    make_recipe(**BF16)
    run = train("optimizer.num_steps=10", "optimizer.learning_rate=3e-2")
    right = merge_rows.added
    monkeypatch.setattr(merge_rows, "added", lambda base, *rest: base)
    with pytest.raises(UserError, match=r"not what was trained \(mean logit difference"):
        merge_run(run)
    assert not [
        p.name for p in run.path.iterdir() if "merged" in p.name and p.name != ".merged.lock"
    ]
    # The arithmetic is right, and what lies on the disk is not.
    calls = []

    def wrong_on_disk(base, factors, first, last):
        calls.append(first)
        return right(base, factors, first, last) * (1.5 if len(calls) < 4 else 1)

    monkeypatch.setattr(merge_rows, "added", wrong_on_disk)
    with pytest.raises(UserError, match=r"not what was trained \((KL|same top token)"):
        merge_run(run)
    assert not run.merged.exists()


def test_what_is_no_number_is_beyond_every_bound() -> None:
    row = dict.fromkeys(("mean_logit_difference", "kl", "same_top_token"), float("nan"))
    assert merge_proof.failure(row, "fp32")
    assert merge_proof.failure(row, "bf16")
    good = {"mean_logit_difference": 1e-5, "kl": 0.009, "same_top_token": 0.95}
    assert merge_proof.failure(good, "fp32") is None
    assert merge_proof.failure(good, "bf16") is None
    assert "KL" in str(merge_proof.failure({**good, "kl": 0.011}, "bf16"))
    assert "top token" in str(merge_proof.failure({**good, "same_top_token": 0.93}, "fp16"))
    assert "mean" in str(merge_proof.failure({**good, "mean_logit_difference": 2e-4}, "fp32"))


def test_where_a_model_does_not_fit_some_layers_stand_for_it(home: Path, monkeypatch) -> None:
    base = save_base(home / "base", num_hidden_layers=11)
    source = source_of(save_adapter(home / "adapter", base), base, quantization())
    monkeypatch.setattr(merge_proof, "fits_whole", lambda geometry, device: False)
    report = merge(source, home / "merged", Options())
    assert report == json.loads((home / "merged" / "merge.json").read_text())
    assert report["fp32"]["layers"] == [0, 1, 3, 4, 6, 7, 9, 10]
    assert report["fp32"]["num_layers"] == 11
    card = (home / "merged" / "README.md").read_text()
    assert "layers: of 11 layers 0, 1, 3, 4, 6, 7, 9, 10" in card
    assert "ids drawn by lot" in card


def test_both_choices_of_a_base_are_compared(make_recipe) -> None:
    make_recipe(**BF16)
    run = train("optimizer.num_steps=10", "optimizer.learning_rate=3e-2")
    report = merge_run(run)
    rows = ["fp32", "fp32, original weights", "bf16"]
    assert list(report) == rows
    apart = {name: row["mean_logit_difference"] for name, row in report.items()}
    assert apart["fp32"] < 1e-5 < apart["bf16"] < apart["fp32, original weights"]
    other = merge_run(run, base_weights="original", dtype="float16")
    assert list(other) == ["fp32", "fp32, original weights", "fp16, original weights"]
    assert other["fp16, original weights"]["kl"] > report["bf16"]["kl"]
    assert list(merge_run(run, dtype="float32", base_weights="original")) == rows[:2]
    assert list(merge_run(run, dtype="float32")) == rows[:2]


def test_the_card_says_where_it_is_from(make_recipe) -> None:
    make_recipe(**BF16)
    run = train("optimizer.num_steps=2")
    run.evaluation.write_text(
        json.dumps({"perplexity": {"tuned": {"trained": 12.345, "description": 3}}})
    )
    merge_run(run, shard_size="100KB")
    text = (run.merged / "README.md").read_text()
    data = ModelCard(text).data
    assert data["library_name"] == "transformers"
    assert {"pressroom", "lora"} <= set(data["tags"])
    assert data["base_model"].startswith("model")
    for words in (
        f"pressroom merge tiny/{run.path.name} --base-weights dequantized --dtype bfloat16",
        "--shard-size 100KB",
        "LoRA, r 4, alpha 8",
        run.dataset.name,
        "`articles.jsonl`",
        "| tuned | 12.35 | 3.00 |",
        "learning_rate: 0.01",
        "held-out articles; layers: all",
    ):
        assert words in text, words
    merge_run(run, verify=False)
    assert "Not verified" in (run.merged / "README.md").read_text()
    assert not run.merge_report.exists()


def run_merge(*arguments: str) -> str:
    result = CliRunner().invoke(commands.merge, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


def test_an_adapter_of_any_origin(home: Path) -> None:
    base = save_base(home / "base")
    save_adapter(home / "adapter", base)
    assert "adapter-merged" in run_merge("adapter")
    with pytest.raises(UserError, match="adapter-merged: is there already; another name by --out"):
        run_merge("adapter")
    plain = merged_tensors(home / "adapter-merged")
    # On codes: those that the base's folder has.
    place = quantize.make(Codes(base, quantization(), "bf16"))
    run_merge("adapter", "--base", str(place), "--output", "on-codes")
    dequantized = merged_tensors(home / "on-codes")
    source = source_of(home / "adapter", base, quantization())
    merge(source, home / "same", Options(verify=False))
    same = merged_tensors(home / "same")
    assert all(torch.equal(dequantized[name], same[name]) for name in same)
    assert any(not torch.equal(dequantized[name], plain[name]) for name in plain)
    with pytest.raises(UserError, match=r"has 4-bit codes alone: give the model they were made"):
        run_merge("adapter", "--base", str(place), "--base-weights", "original", "--output", "x")


def test_a_checkpoint_is_merged_beside_the_run(make_recipe) -> None:
    make_recipe(**BF16)
    run = train("optimizer.num_steps=4", "checkpoint.every_steps=2")
    run_merge(str(run.checkpoint(2)))
    first = merged_tensors(run.path / "merged-step-000002")
    run_merge(str(run.adapter))
    last = merged_tensors(run.merged)
    assert any(not torch.equal(first[name], last[name]) for name in last)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _pickled(home: Path) -> None:
    (home / "adapter" / "adapter_model.safetensors").rename(home / "adapter" / "adapter_model.bin")


def _pickled_base(home: Path) -> None:
    for path in (home / "base").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def _other_base(home: Path) -> None:
    save_base(home / "other", hidden_size=128)
    _edit(home / "adapter" / "adapter_config.json", base_model_name_or_path=str(home / "other"))


def _fewer_layers(home: Path) -> None:
    save_base(home / "other", num_hidden_layers=2)
    _edit(home / "adapter" / "adapter_config.json", base_model_name_or_path=str(home / "other"))


def _cut_shard(home: Path) -> None:
    path = sorted((home / "base").glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-7])


def _extra_tensor(home: Path) -> None:
    path = home / "adapter" / "adapter_model.safetensors"
    extra = {"base_model.model.lm_head.weight": torch.zeros(320, 64)}
    save_file({**load_file(path), **extra}, path)


def _many_words(home: Path) -> None:
    path = home / "base" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"word{i}": i for i in range(3, 400)}
    path.write_text(json.dumps(content))


MISTAKES: dict[str, tuple[Any, str]] = {
    "another base": (
        _other_base,
        r"not one of .*other:\n  model\.layers\.0.*: is \[\d+, \d+\], and",
    ),
    "fewer layers": (_fewer_layers, r"model\.layers\.2\..*: the base has no such weight\n.*more"),
    "another vocabulary": (
        lambda h: _edit(h / "base" / "config.json", vocab_size=400),
        r"embed_tokens\.weight: is \[320, 64\], and config\.json says \[400, 64\]",
    ),
    "a tokenizer of more words": (_many_words, "its tokenizer has 400 tokens, and the model 320"),
    "a lost shard": (
        lambda h: sorted((h / "base").glob("*.safetensors"))[1].unlink(),
        r"fetch the base model again:\n  model-00002-of-0000\d\.safetensors: missing",
    ),
    "a cut shard": (_cut_shard, r"model-00002.*missing or damaged .*fetch the base model again"),
    "a pickled adapter": (_pickled, r"adapter_model\.bin: is not read: a pickle can run any code"),
    "a pickled base": (_pickled_base, r"has no \*\.safetensors \(.*bin is not read: a pickle can"),
    "code of its own": (
        lambda h: _edit(h / "base" / "config.json", auto_map={"AutoModel": "x.Y"}),
        "auto_map asks for code of the model's own, which is never run",
    ),
    "another architecture": (
        lambda h: _edit(h / "base" / "config.json", model_type="mistral"),
        "model_type is 'mistral': only 'llama'",
    ),
    "more than LoRA": (
        lambda h: _edit(h / "adapter" / "adapter_config.json", use_dora=True, bias="all"),
        "only plain LoRA is merged: use_dora: True, bias: all",
    ),
    "a start that changes the base": (
        lambda h: _edit(h / "adapter" / "adapter_config.json", init_lora_weights="pissa"),
        "only plain LoRA is merged: init_lora_weights: pissa",
    ),
    "a trained head": (_extra_tensor, r"lm_head\.weight: is no factor of a linear layer"),
    "a base that is nowhere": (
        lambda h: _edit(h / "adapter" / "adapter_config.json", base_model_name_or_path="./bse"),
        r"no such folder .*did you mean base\?",
    ),
    "no base named": (
        lambda h: _edit(h / "adapter" / "adapter_config.json", base_model_name_or_path=None),
        "names no base: give it by --base",
    ),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_belong_together_is_told_before_any_work(
    home: Path, make: Any, message: str
) -> None:
    base = save_base(home / "base")
    save_adapter(home / "adapter", base)
    make(home)
    with pytest.raises(UserError, match=message):
        run_merge("adapter")
    assert {p.name for p in home.iterdir()} - {"base", "adapter", "other"} <= {
        ".adapter-merged.lock"
    }


def test_options_that_are_wrong(home: Path, make_recipe) -> None:
    make_recipe()
    run = train("optimizer.num_steps=2")
    for arguments, message in {
        ("--shard-size", "5"): "--shard-size 5: must be like 5GB or 500MB",
        ("--base", "x"): "a run knows its base",
        ("--output", str(home)): "is there already; another name by --output",
    }.items():
        with pytest.raises(UserError, match=message):
            run_merge(str(run.path), *arguments)
