"""Merging is proven on logits, evaluation weighs tokens, generation ends by eos."""

import json
from pathlib import Path

import pytest
import torch
from merging import merge_run
from training import train
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from generate import commands, evaluate, held_out, merge_proof, sample, scores
from generate.evaluation_table import table
from generate.held_out import HeldOut
from generate.tuned import load_tuned
from pressroom.console import Progress, UserError
from pressroom.nn import sampling
from pressroom.nn.loss import token_nll
from pressroom.nn.nf4 import load_base
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.runs import find_run
from pressroom.samples import Sampling, held_out_articles
from pressroom.tokenizer import ArticleTokenizer

CPU = torch.device("cpu")
BF16 = {
    "memory": {"precision": "bf16"},
    "quantization": {"compute_dtype": "bfloat16", "storage_dtype": "bfloat16"},
}


@pytest.fixture
def run(make_recipe) -> RunDir:
    """A run trained in bf16, as users train."""
    make_recipe(**BF16)
    return train("optimizer.num_steps=10", "optimizer.learning_rate=3e-2")


@pytest.mark.parametrize("quantized", [True, False])
def test_merged_logits_are_the_trained_ones(make_recipe, quantized: bool) -> None:
    make_recipe(**BF16)
    null = [] if quantized else ["quantization=null"]
    run = train("optimizer.num_steps=10", "optimizer.learning_rate=3e-2", *null)
    report = merge_run(run)
    assert report == json.loads(run.merge_report.read_text())
    assert report["fp32"]["mean_logit_difference"] < 1e-5
    assert report["bf16"]["same_top_token"] > 0.94
    assert report["bf16"]["kl"] < 0.01
    # The comparison can tell: without the adapter the logits are elsewhere.
    tuned = load_tuned(run, run.load_recipe())
    with_adapter = _logits(tuned, run)
    with tuned.disable_adapter():
        without = _logits(tuned, run)
    assert merge_proof.compare(with_adapter, without)["mean_logit_difference"] > 0.01


def _logits(model, run: RunDir) -> list[torch.Tensor]:
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([a.ids])).logits[0].float()
            for a in held_out.tokens(run.dataset)
        ]


def test_any_client_loads_the_merged_folder(run: RunDir) -> None:
    merge_run(run)
    model = AutoModelForCausalLM.from_pretrained(run.merged)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run.merged)
    assert tokenizer.eos_token == "</s>"
    assert not [p for p in run.merged.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_evaluation_says_base_beside_tuned(run: RunDir) -> None:
    result = evaluate.evaluate(run, run.load_recipe())
    rows = result["perplexity"]
    assert set(rows) == {"base", "tuned", "unquantized base"}
    assert rows["tuned"]["trained"] < rows["base"]["trained"]
    assert result["adapter_off_is_base_bitwise"] is True
    assert result["articles"] == len(held_out_articles(run.dataset))
    shown = table(result)
    assert "tuned" in shown
    assert f"{rows['base']['trained']:.2f}" in shown


def test_perplexity_of_known_likelihoods() -> None:
    article = HeldOut(ids=[1, 5, 6, 7, 2], labels=[-100, 5, 6, 7, 2], prompt_length=2)
    nll = torch.tensor([0.0, 4.0, 1.0, 3.0, 8.0])
    found = scores.totals([article], [nll], eos_id=2)
    assert scores.loss(found["trained"]) == pytest.approx(4.0)
    assert scores.loss(found["description"]) == pytest.approx(2.0)
    # A piece of a longer article does not end by eos: its last token counts.
    piece = HeldOut(ids=[1, 5, 6, 7, 8], labels=[-100, 5, 6, 7, 8], prompt_length=2)
    found = scores.totals([piece], [nll], eos_id=2)
    assert scores.loss(found["description"]) == pytest.approx(4.0)


def test_token_nll_is_that_of_full_logits(tiny_model: Path, monkeypatch) -> None:
    from pressroom.nn import loss

    monkeypatch.setattr(loss, "_CHUNK_TOKENS", 7)
    model = load_base(tiny_model, None, "fp32", CPU)
    torch.manual_seed(0)
    ids = torch.randint(3, 512, (3, 20))
    labels = ids.clone()
    labels[0, 12:] = -100
    labels[:, 0] = -100
    found = token_nll(model, ids, labels)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    assert torch.allclose(found[:, 1:], expected, atol=1e-6)
    assert not found[:, 0].any()


def test_greedy_text_is_the_same_alone_and_in_a_batch(tiny_model: Path) -> None:
    model = load_base(tiny_model, None, "fp32", CPU)
    prompts = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64]]
    options = {"eos_id": 2, "how": Sampling(max_new_tokens=12)}
    together = sampling.generate(model, prompts, **options)
    assert together == [sampling.generate(model, [p], **options)[0] for p in prompts]
    assert all(1 <= len(ids) <= 12 for ids in together)


def test_progress_counts_tokens(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_base(tiny_model, None, "fp32", CPU)
    tokenizer, how = ArticleTokenizer(tiny_model), Sampling(max_new_tokens=7)
    with caplog.at_level("INFO", "pressroom"), Progress("write", 7, "token") as progress:
        sampling.write(model, tokenizer, ["city", "a"], how, progress=progress)
    assert "write 7/7 token" in caplog.text


def test_text_stops_at_eos_and_begins(tiny_model: Path) -> None:
    model = load_base(tiny_model, None, "fp32", CPU)
    options = {"eos_id": 2, "how": Sampling(max_new_tokens=12)}
    usual = sampling.generate(model, [[1, 40, 41]], **options)[0]
    assert len(usual) == 12
    # Make the token that would come third the end, then the first one.
    third = {**options, "eos_id": usual[2]}
    assert usual[2] not in usual[:2]
    assert sampling.generate(model, [[1, 40, 41]], **third)[0] == usual[:3]
    first = sampling.generate(model, [[1, 40, 41]], **{**options, "eos_id": usual[0]})[0]
    assert first[0] != usual[0]


def test_generation_ignores_what_the_model_folder_says(tiny_model: Path) -> None:
    model = load_base(tiny_model, None, "fp32", CPU)
    for temperature in (0.0, 1.0):
        how = Sampling(max_new_tokens=12, temperature=temperature)
        options = {"eos_id": 2, "how": how}
        model.generation_config.update(top_p=1.0, repetition_penalty=1.0, do_sample=True)
        usual = sampling.generate(model, [[1, 40]], **options)
        model.generation_config.update(top_p=0.01, repetition_penalty=9.0, do_sample=True)
        assert sampling.generate(model, [[1, 40]], **options) == usual
    assert sampling.generate(model, [], **options) == []


def test_samples_stand_beside_the_base(run: RunDir) -> None:
    recipe = run.load_recipe()
    samples = sample.beside_base(run, recipe, Sampling(max_new_tokens=8))
    assert samples[0]["prompt"] == "city!"
    assert len(samples) == 3
    for of_title in samples[1:]:
        assert of_title["prompt"] == f"### title: {of_title['title']} ### description:"
        assert of_title["tuned"]["text"].startswith(of_title["prompt"])
        assert of_title["reference"]
    assert "tuned: city!" in sample.show(samples)


def test_sampling_follows_its_seed(tiny_model: Path) -> None:
    model = load_base(tiny_model, None, "fp32", CPU)

    def drawn(seed: int) -> list[list[int]]:
        how = Sampling(max_new_tokens=12, temperature=1.0, seed=seed)
        return sampling.generate(model, [[1, 40]], how, eos_id=2)

    assert drawn(3) == drawn(3) != drawn(4)


def test_a_run_without_an_adapter_is_told(make_recipe, home: Path) -> None:
    recipe: Recipe = make_recipe()
    unfinished = RunDir.create(recipe)
    for name in ("tiny", str(unfinished.path)):
        with pytest.raises(UserError, match="has no adapter yet"):
            find_run(name, trained=True)
    with pytest.raises(UserError, match="training has not begun"):
        _ = unfinished.dataset
    with pytest.raises(UserError, match=r"no such run under .*; did you mean tiny\?"):
        find_run("tniy")
    with pytest.raises(UserError, match=r"no such run under .*; runs of: tiny"):
        find_run("other")
    assert find_run("tiny").path.name == unfinished.path.name


def test_a_run_is_found_by_what_a_person_types(make_recipe, home: Path) -> None:
    recipe: Recipe = make_recipe()
    finished, unfinished = RunDir.create(recipe), RunDir.create(recipe)
    finished.adapter.mkdir()
    stamp = finished.path.name
    for name in (
        "tiny",
        f"tiny/{stamp}",
        stamp,
        "runs/tiny",
        f"runs/tiny/{stamp}",
        f"runs/tiny/{stamp}/adapter",
        "recipe.yaml",
        str(finished.path.absolute()),
    ):
        assert find_run(name, trained=True).path.name == stamp, name
    assert find_run("tiny").path.name == unfinished.path.name


def test_a_run_is_evaluated_from_anywhere(run: RunDir, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PRESSROOM_HOME")
    elsewhere = find_run(str(run.path.absolute()))
    monkeypatch.chdir("/")
    assert elsewhere.dataset.is_dir()


def test_shown_with_other_options_samples_stay_the_recipes(run: RunDir) -> None:
    from click.testing import CliRunner

    done = CliRunner().invoke(commands.generate, [str(run.path)], catch_exceptions=False)
    assert done.exit_code == 0
    before = run.samples.read_text()
    CliRunner().invoke(commands.generate, [str(run.path), "--max-new-tokens", "2"])
    assert run.samples.read_text() == before
