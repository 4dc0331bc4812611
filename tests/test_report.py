"""Pictures show the numbers that they are given, and a run's page what lies in its directory."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import recipe_text, write_jsonl

from pressroom.cli import main
from pressroom.console import UserError
from pressroom.dataset import Manifest, Shard
from pressroom.files import publish_json
from pressroom.locks import lock
from pressroom.recipe import Recipe
from pressroom.report import metrics, packing_figure
from pressroom.report.headline import headline
from pressroom.report.page import publish, render, try_publish
from pressroom.run_dir import RunDir

SECTIONS = [
    "Held-out perplexity",
    "How it went",
    "What it writes",
    "Predicted beside measured",
    "The merge's proof",
    "Checkpoints and models",
    "Stages",
    "Articles",
    "Environment",
    "Recipe",
]
SECRET = "s3cret&<value>-of-a-hub"


def test_what_the_picture_shows() -> None:
    lengths, tokens = np.array([128, 128, 30, 30]), np.array([128, 128, 60])
    figure = packing_figure("name, train", lengths, tokens, np.array([1, 1, 2]), 128)
    left, fill, shared = figure.axes
    assert figure.get_suptitle() == "name, train"
    assert left.get_title(loc="left") == "How long articles are: median 79 tokens"
    assert fill.get_title(loc="left") == "How full rows are: 82.3 % over all"
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    # Bars two tokens wide, the last of them ending at a row's length.
    bars = {round(p.get_x()): p.get_height() for p in left.patches if p.get_height()}
    assert bars == {29: 2, 127: 2}
    assert sum(p.get_height() for p in fill.patches) == 3
    assert [p.get_height() for p in shared.patches] == [2, 1]


def row(step: int, **values: Any) -> dict[str, Any]:
    """A row of metrics.jsonl."""
    return {
        "step": step,
        "loss": 5.0 - step / 4,
        "learning_rate": 1e-3 / step,
        "grad_norm": 0.5,
        "tokens": 500,
        "step_seconds": 2.0,
        "tokens_per_second_per_gpu": 250.0,
        "mfu": 0.4,
        "model_tflops_per_second_per_gpu": 12.5,
        "peak_memory_gib": 1.5,
        "data_wait_seconds": 0.01,
        **values,
    }


@pytest.fixture
def begun(home: Path) -> RunDir:
    """A run that has a recipe, and nothing else yet."""
    (home / "my.yaml").write_text(recipe_text(home / "base"))
    run = RunDir(home / "runs" / "tiny" / "2026-01-02T03-04-05")
    run.begin(Recipe.load("my.yaml"))
    return run


@pytest.fixture
def finished(begun: RunDir, home: Path) -> RunDir:
    """A run whose every stage has left something."""
    facts = {"dataset": "data/tiny-abc", "device": "NVIDIA H100", "world_size": 8}
    publish_json(begun.environment, {**facts, "torch": "2.13.0", "commit": "0123abcd"})
    shard = Shard(split="train", file="a", rows=24, tokens=2900, trained_tokens=2800, sha256="0")
    (home / "data" / "tiny-abc").mkdir(parents=True)
    Manifest(
        key="abc",
        spec={},
        articles={"articles.jsonl": "8c9cb8"},
        counts={"read": 60, "train": 50, "held_out": 6, "rejected": {"no title": 4}},
        packing={"train": 0.944},
        shards=(shard,),
        files={},
        versions={},
    ).write(home / "data" / "tiny-abc")
    rows = [row(step) for step in range(1, 7)]
    write_jsonl(begun.metrics, [*rows, {"step": 6, "eval_loss": 3.25}])
    predicted = {"peak_in_step_gib": 1.25, "gpu": "cpu", "step_seconds": 1.0}
    measured = {"peak_in_step_gib": 1.5, "step_seconds": 2.0}
    publish_json(begun.summary, {"predicted": predicted, "measured": measured})
    for folder in (begun.checkpoint(6), begun.adapter):
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(bytes(3 * 2**20))
    perplexity = {"trained": 199.9, "description": 59.1}
    tuned = {"trained": 35.9, "description": 35.5}
    scored = {"articles": 6, "trained_tokens": 300, "perplexity": {"base": perplexity}}
    scored["perplexity"]["tuned"] = tuned
    publish_json(begun.evaluation, scored)
    names = ("mean_logit_difference", "max_logit_difference", "kl", "same_top_token")
    publish_json(begun.merge_report, {"fp32": dict.fromkeys(names, 0.5)})
    text = {"text": "city! it rains.", "ended": True, "new_tokens": 4}
    sample = {"prompt": "city!", "title": None, "reference": "It pours.", "tuned": text}
    cut = {**text, "text": "city! city! city!", "ended": False}
    write_jsonl(begun.samples, [{**sample, "base": cut}])
    begun.record_stage("train", "key", 75.2)
    return begun


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what was opened."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        """Keep what can be read."""
        if self.tags[-1:] == ["h2"] and data.strip():
            self.headings.append(data)
        self.words += data


def test_a_finished_run_shows_everything(finished: RunDir) -> None:
    page = Page(render(finished))
    assert page.headings == SECTIONS
    for words in (
        *("finished", "step 6 of 6", "199.9 → 35.9", "35.9 (-82%)", "8 x NVIDIA H100"),
        *("2026-01-02 03:04", "0:12", "3,000", "3.2500"),  # begun, in steps, tokens, held out
        *("Loss of a trained token", "held out", "Learning rate", "Gradient norm", "clipped to"),
        *("MFU", "Wait for data", "predicted", "it rains.", "city! city! [cut]", "It pours."),
        *("+20%", "50.0%", "step-000006", "3.0 MiB", "1:15", "rejected: no title", "2,900, 94.4%"),
        *("0123abcd", "learning_rate: 0.01"),
    ):
        assert words in page.words, words
    assert page.words.count("city!") == 4  # the recipe's, the prompt, twice more by the base
    assert "TFLOP/s" not in page.words  # MFU says it
    assert page.tags.count("svg") == page.tags.count("figcaption") == 8


def test_the_page_needs_no_other_file(finished: RunDir) -> None:
    html = render(finished)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    fetched = [
        value or ""
        for name, value in page.attributes
        if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")
    ]
    assert all(value.startswith("#") for value in fetched)
    assert not re.search(r"@import|@font-face|url\((?!#)", html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "#0072b2" in html.split("</style>")[0]
    assert "#0072b2" not in html.split("</style>", 1)[1]  # pictures take the page's colours


def test_the_same_run_gives_the_same_page(finished: RunDir) -> None:
    pages = {re.sub("Made by .*", "", render(finished)) for _ in range(2)}
    assert len(pages) == 1


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("evaluation.json", "Held-out perplexity"),
        ("metrics.jsonl", "How it went"),
        ("samples.jsonl", "What it writes"),
        ("summary.json", "Predicted beside measured"),
        ("merged/merge.json", "The merge's proof"),
        ("stages.json", "Stages"),
        ("environment.json", "Environment"),
    ],
)
def test_what_is_not_there_is_left_out(finished: RunDir, name: str, heading: str) -> None:
    if name != "metrics.jsonl":
        finished.metrics.unlink()
    (finished.path / name).unlink()
    page = Page(render(finished))
    assert heading in SECTIONS
    assert set(page.headings) <= set(SECTIONS) - {heading}
    assert page.headings[-1] == "Recipe"
    assert "damaged" not in page.words


@pytest.mark.parametrize("name", ["evaluation.json", "summary.json", "merged/merge.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"perplexity": [1]}', "[" * 100_000, "\x00\xff"]
)
def test_a_damaged_file_is_told_and_is_not_fatal(finished: RunDir, name: str, content: str) -> None:
    finished.metrics.unlink()
    (finished.path / name).write_bytes(content.encode("latin1"))
    page = Page(render(finished))
    assert len(page.headings) == 8
    assert re.search(rf"{name.rpartition('/')[2]}: (missing or )?damaged", page.words)


def test_other_damage_is_told_too(finished: RunDir, home: Path) -> None:
    with finished.metrics.open("ab") as file:
        file.write(b'[]\n{"step": "7"}\n{"step": 1e999}\n\xff\xfe\n{"step": 7, "lo')
    with finished.samples.open("a") as samples:
        samples.write('{"prompt": "ci')
    finished.environment.write_text("no json")
    finished.stages_file.write_text("3")
    finished.recipe.write_text("name: tiny\nfoo: <bar>\n")
    page = Page(render(finished))
    for words in (
        "metrics.jsonl: 5 lines are damaged",
        "Damaged lines, left out: 1.",
        "environment.json: missing or damaged",
        "stages.json: damaged",
        "recipe.yaml:2: foo: unknown key",
        "step 6",
        "it rains.",
        "foo: <bar>",
    ):
        assert words in page.words, words


def test_a_dataset_that_is_gone_or_damaged_is_told(finished: RunDir, home: Path) -> None:
    finished.metrics.unlink()
    manifest = home / "data" / "tiny-abc" / "manifest.json"
    replace(Manifest.read(manifest.parent), counts={}).write(manifest.parent)
    assert "tiny-abc: damaged" in Page(render(finished)).words
    manifest.unlink()
    assert "not a dataset's manifest" in Page(render(finished)).words
    manifest.parent.rmdir()
    assert re.search("its dataset .* is gone", Page(render(finished)).words)


def test_what_is_no_number_is_marked(begun: RunDir) -> None:
    values = [5.0, math.nan, math.inf, -math.inf, 1e308, 4.0]
    rows = [row(i, loss=v, grad_norm=v, mfu=None) for i, v in enumerate(values, start=1)]
    write_jsonl(begun.metrics, rows)
    page = Page(render(begun))
    assert "not a number (4)" in page.words
    assert "Gradient norm" in page.words
    assert "MFU" not in page.words
    assert "Model FLOPs" in page.words
    write_jsonl(begun.metrics, [row(1, loss=math.nan, grad_norm=math.nan)])
    page = Page(render(begun))
    assert "not a number (1)" in page.words
    assert "Gradient norm" not in page.words


def test_articles_and_names_are_data(finished: RunDir, home: Path) -> None:
    evil = '</pre></style><script>alert(1)</script><img src=x onerror="alert(2)">\u202e{{ 7*7 }}'
    known = set(Page(render(finished)).tags)
    text = {"text": evil, "ended": True, "new_tokens": 1}
    samples = [{"prompt": evil, "reference": evil, "tuned": text, "base": text}]
    write_jsonl(finished.samples, samples)
    finished.error.write_text(evil)
    scored = json.loads(finished.evaluation.read_text())
    scored["perplexity"][f"{evil} $\\frac$"] = scored["perplexity"]["tuned"]
    publish_json(finished.evaluation, scored)
    facts = json.loads(finished.environment.read_text())
    publish_json(finished.environment, {**facts, evil: evil, "device": evil})
    finished.recipe.write_text(f"name: {json.dumps(evil)}\n")
    named = home / "runs" / "<script>alert(3)<" / "<b onclick=x>"
    named.parent.mkdir()
    finished.path.rename(named)
    html = render(RunDir(named))
    page = Page(html)
    assert set(page.tags) <= known | {"b"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.words.count("<script>alert(1)") >= 8
    assert "alert(3)" in page.words
    assert "{{ 7*7 }}" in page.words
    assert "\u202e" not in html


def test_no_secret_gets_onto_the_page(finished: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    shaped = "hf_" + "a" * 20
    finished.error.write_text(f"denied: {SECRET} {shaped} https://api.example/?access_key=abc123")
    facts = json.loads(finished.environment.read_text())
    publish_json(finished.environment, {**facts, "base": SECRET, SECRET: 1})
    text = {"text": SECRET, "ended": True, "new_tokens": 1}
    write_jsonl(finished.samples, [{"prompt": SECRET, "tuned": text, "reference": SECRET}])
    finished.recipe.write_text(f"name: x\nprompt: {SECRET!r}\n")
    html = render(finished)
    words = Page(html).words
    for secret in (SECRET, "s3cret", shaped, "abc123"):
        assert secret not in html
        assert secret not in words
    assert words.count("<HF_TOKEN>") >= 6


def test_a_long_run_makes_a_small_page(finished: RunDir) -> None:
    source = np.random.default_rng(0).normal(size=(100_000, 2))
    rows = [row(i, loss=3 + a, grad_norm=abs(b)) for i, (a, b) in enumerate(source, start=1)]
    write_jsonl(finished.metrics, rows)
    sample = json.loads(finished.samples.read_text())
    sample["tuned"]["text"] = "word " * 10_000
    write_jsonl(finished.samples, [sample, *({**sample, "step": i} for i in range(1, 200))])
    html = render(finished)
    assert len(html) < 1_000_000
    words = Page(html).words
    assert "12 of 200 are shown" in words
    assert "characters more]" in words
    assert "step 199" in words


def test_thinning_keeps_the_peaks_and_smoothing_the_mean() -> None:
    steps, values = np.arange(1.0, 100_001), np.ones(100_000)
    values[[777, 54_321]] = 9.0, -9.0
    thin_steps, thin_values = metrics.thin((steps, values))
    assert len(thin_steps) <= 1000
    assert (np.diff(thin_steps) > 0).all()
    kept = dict(zip(thin_steps, thin_values, strict=True))
    assert (kept[778.0], kept[54_322.0]) == (9.0, -9.0)
    (_, mean), width = metrics.smooth((steps[:20], np.arange(20.0)))
    assert width == 5
    np.testing.assert_allclose(mean[[0, 10, 19]], [1.0, 10.0, 18.0])


def test_a_series_is_in_order_and_without_null(home: Path) -> None:
    rows = [{"step": 2, "loss": 1}, {"step": 1, "loss": math.nan}, {"step": 3, "loss": None}]
    write_jsonl(home / "metrics.jsonl", [*rows, {"step": 4, "loss": True}])
    series, damaged = metrics.read(home / "metrics.jsonl")
    assert damaged == 0
    steps, losses = series["loss"]
    assert steps.tolist() == [1, 2]
    assert math.isnan(losses[0])
    assert losses[1] == 1


def state(run: RunDir, num_steps: int | None = 6) -> str:
    """What a page says about how a run stands."""
    series = metrics.read(run.metrics)[0] if run.metrics.is_file() else {}
    found = headline(run, series, num_steps)
    return f"{found.state}: {found.words} {found.error}"


def test_how_a_run_stands(begun: RunDir) -> None:
    assert "begun: training has not begun" in state(begun)
    page = Page(render(begun))
    assert page.headings == ["Recipe"]
    assert "training has not begun" in page.words
    with lock(begun.lock, "the run"):
        assert "running: no step yet" in state(begun)
        write_jsonl(begun.metrics, [row(1), row(2)])
        assert "running: step 2 of 6, as of 20" in state(begun)
    with lock(begun.lock, "the run", shared=True):  # as ranks hold it together
        assert "running: step 2 of 6, as of 20" in state(begun)
    assert "stopped at step 2 of 6" in state(begun)
    assert "stopped at step 2," in state(begun, None)
    with lock(begun.lock, "the run"):
        pass  # the page has not kept it
    begun.logs.mkdir()
    (begun.logs / "rank0.log").write_text("old\n" * 50 + "Detected 1 oom_kill event\n")
    assert "rank0.log:\nold" in state(begun)
    assert "Detected 1 oom_kill event" in state(begun)
    assert state(begun).count("old") == 14
    begun.error.write_text("error: the disk is full\n")
    assert "failed at step 2 of 6" in state(begun)
    assert "the disk is full" in state(begun)
    assert "oom_kill" not in state(begun)
    begun.adapter.mkdir()
    assert "failed, after training had finished" in state(begun)
    begun.error.unlink()
    assert re.search(r"finished 20[-\d]+ [:\d]+: step 2 of 6", state(begun))


def test_steps_of_epochs_come_from_the_dataset(finished: RunDir, home: Path) -> None:
    epochs = {"learning_rate": 1e-2, "num_epochs": 2}
    (home / "my.yaml").write_text(recipe_text(home / "base", optimizer=epochs))
    finished.write_recipe(Recipe.load("my.yaml"))
    assert "step 6 of 12" in Page(render(finished)).words


def test_the_command(finished: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(finished.metrics, [{"step": 6, "loss": 3.5}])
    done = CliRunner().invoke(main, ["report", "tiny"], catch_exceptions=False)
    assert done.output == f"{finished.report}\n"
    assert "step 6 of 6" in finished.report.read_text(encoding="utf-8")
    finished.report.unlink()
    monkeypatch.chdir(finished.path)
    CliRunner().invoke(main, ["report", "."], catch_exceptions=False)
    words = Page(finished.report.read_text(encoding="utf-8")).words
    assert "tiny/2026-01-02T03-04-05" in words
    assert "rejected: no title" in words
    with pytest.raises(UserError, match="did you mean tiny"):
        CliRunner().invoke(main, ["report", "tyni"], catch_exceptions=False)


def test_no_training_fails_by_its_page(
    finished: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished.metrics.unlink()
    try_publish(finished)
    assert finished.report.is_file()

    def fail(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pressroom.report.page.publish_text", fail)
    with pytest.raises(OSError, match="No space"):
        publish(finished)
    try_publish(finished)
    assert "report.html was not written: OSError" in caplog.text


def test_the_page_is_made_without_torch(finished: RunDir) -> None:
    code = (
        "import sys; from pathlib import Path; from pressroom.report.page import publish\n"
        "from pressroom.run_dir import RunDir; publish(RunDir(Path(sys.argv[1])))\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(finished.path)]
    assert subprocess.check_output(command, text=True) == "[]\n"
