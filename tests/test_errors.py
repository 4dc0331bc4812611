"""Every user's mistake that was thought of, made; what is said is `docs/errors.md`.

`make docs` writes that page anew from what is said here.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import invented_articles, write_jsonl

from pressroom import cli, train_sections

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
RECIPE = """\
name: news
model: {base: ./llama}
data:
  articles: ["articles/*.jsonl"]
  held_out: 0.1
sequence_length: 128
batch: {global_batch_size: 4, micro_batch_size: 2}
optimizer: {learning_rate: 2e-4, num_steps: 2}
memory: {precision: fp32}
quantization: {compute_dtype: float32, storage_dtype: float32}
"""


@dataclass(frozen=True, eq=False)
class Mistake:
    """What was done wrong, and the command that meets it."""

    title: str
    command: str
    make: Callable[[Path], object] = lambda home: None


def _edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        (path,) = home.glob(name)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    def write(home: Path) -> None:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def _cut(pattern: str) -> Callable[[Path], object]:
    def cut(home: Path) -> None:
        (path,) = home.glob(pattern)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


def _flip(pattern: str) -> Callable[[Path], object]:
    def flip(home: Path) -> None:
        (path,) = home.glob(pattern)
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)

    return flip


def _copy(pattern: str, name: str) -> Callable[[Path], object]:
    def copy(home: Path) -> None:
        (path,) = home.glob(pattern)
        shutil.copyfile(path, path.with_name(name))

    return copy


def _remove(pattern: str) -> Callable[[Path], object]:
    def remove(home: Path) -> None:
        for path in list(home.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _config(**changes: object) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        path = home / "llama" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _other_adapter(home: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    (path,) = home.glob("runs/news/*/adapter/adapter_model.safetensors")
    tensors = load_file(path)
    save_file({name: torch.zeros(3, 3) for name in tensors}, path)


def _pickle_adapter(home: Path) -> None:
    (path,) = home.glob("runs/news/*/adapter/adapter_model.safetensors")
    path.rename(path.with_suffix(".bin"))


DRY = "pressroom run my.yaml --dry-run"
RUN = "pressroom run my.yaml"
SUBMIT = "pressroom submit my.yaml --cluster"
WRONG_CLUSTER = """\
partition: gpu
gpus: h100
gpu: h1000
gpus_per_node: 8
cpus_per_node: 4
time_limit: 2 days
shared: [work]
environment: {HF_TOKEN: hf_x}
"""


CATALOGUE: dict[str, list[Mistake]] = {
    "The recipe": [
        Mistake("A misspelt key", DRY, _edit("my.yaml", "held_out", "heldout")),
        Mistake(
            "Keys as other trainers call them",
            DRY + " lora_r=16 per_device_train_batch_size=1 load_in_4bit=true max_seq_length=512",
        ),
        Mistake(
            "Several mistakes at once",
            DRY + " optimizer.lr=1e-4",
            _edit("my.yaml", "held_out: 0.1\nsequence_length: 128", "held_out: 3\nseq_length: 128"),
        ),
        Mistake("A number in quotes", DRY, _edit("my.yaml", "2e-4", '"2e-4"')),
        Mistake("A key given twice", DRY, _edit("my.yaml", "sequence", "name: x\nsequence")),
        Mistake("An override given twice", DRY + " seed=1 seed=2"),
        Mistake("An override that is none", DRY + " lora.r:16"),
        Mistake("A recipe's key with dashes", RUN + " --num_steps 2"),
        Mistake("A file where a list belongs", DRY + " data.articles=articles/a.jsonl"),
        Mistake("An empty list", DRY + " data.articles=[]"),
        Mistake("A word that is none of those known", DRY + " parallel.strategy=fdsp"),
        Mistake("A prompt format that is not known", DRY + " prompt.format=lama2-chat"),
        Mistake("Not YAML", DRY, _edit("my.yaml", "{base: ./llama}", "{base: ./llama")),
        Mistake("Nought where a share belongs", DRY + " data.held_out=0"),
        Mistake("A number that is none", DRY + " optimizer.learning_rate=1e999"),
        Mistake("A tab", DRY, _edit("my.yaml", "  articles", "\tarticles")),
        Mistake("Not text", DRY, _write("my.yaml", b"name: caf\xe9\n")),
        Mistake("A required section is missing", DRY, _edit("my.yaml", "batch:", "# batch:")),
        Mistake("No such file", "pressroom run mine.yaml"),
        Mistake("Almost the name of a shipped recipe", "pressroom train llama2-7b"),
        Mistake("Steps and epochs", DRY + " optimizer.num_epochs=1"),
        Mistake("A micro-batch that does not divide the batch", DRY + " batch.micro_batch_size=3"),
        Mistake(
            "Codes that FSDP would leave whole on every GPU",
            DRY + " parallel.strategy=fsdp quantization.storage_dtype=uint8",
        ),
        Mistake("Two compute dtypes", DRY + " memory.precision=bf16"),
        Mistake(
            "An optimizer whose state cannot be sharded",
            DRY + " parallel.strategy=zero3 optimizer.name=paged_adamw_8bit",
        ),
        Mistake("A row longer than the model's positions", DRY + " sequence_length=8192"),
        Mistake("A layer that is not there", DRY + " lora.target_modules=[q_porj,lm_head]"),
        Mistake("A tracker that is not installed", DRY + " tracking.trackers=[wandb]"),
    ],
    "Articles": [
        Mistake("No such file", DRY + " data.articles=[artikles/*.jsonl]"),
        Mistake("An empty file", DRY, _write("articles/a.jsonl", "")),
        Mistake("A JSON array", RUN, _write("articles/a.jsonl", '[{"title": "T"},\n{}]\n')),
        Mistake(
            "Latin-1", RUN, _write("articles/a.jsonl", '{"title": "Caf\xe9"}'.encode("latin-1"))
        ),
        Mistake(
            "Other names for the columns",
            RUN,
            _write("articles/a.jsonl", '{"headline": "T", "summary": "D"}\n'),
        ),
        Mistake(
            "A name that would drive the terminal",
            RUN,
            _write("articles/a.jsonl", '{"\\u001b[31mheadline": "T", "summary": "D"}\n'),
        ),
        Mistake(
            "A table in CSV",
            DRY + " data.articles=[a.csv]",
            _write("a.csv", "title,description\nT,D\n"),
        ),
        Mistake(
            "A takedown list with lines that name no article",
            DRY,
            _write("data/takedown.txt", "https://news.example/0/3\n8f2b41\nnews.example/0/4\n"),
        ),
        Mistake("A takedown list that is not there", DRY + " data.takedown=legal/takedown.txt"),
        Mistake("Nothing left to hold out", RUN + " data.held_out=2030-01-01"),
        Mistake(
            "Something that is not Parquet",
            RUN + " data.articles=[a.parquet]",
            _write("a.parquet", "PAR1"),
        ),
        Mistake("A hub's data set without a network", RUN + " data.articles=[hub:org/news]"),
        Mistake("Not a hub's data set", RUN + " data.articles=[hub:news]"),
    ],
    "Preparation": [
        Mistake("No worker", "pressroom prep my.yaml --num-workers 0"),
        Mistake("A language by its name", DRY + " data.quality.languages=[english]"),
        Mistake("Likeness of nothing", DRY + " data.near_duplicate=0"),
        Mistake("Nothing is good enough", RUN + " data.quality.min_words=1000"),
    ],
    "Fetching": [
        Mistake("No key", "pressroom fetch mediastack"),
        Mistake("No such feed", "pressroom fetch mediastac"),
        Mistake(
            "Names that the API does not know",
            "pressroom fetch mediastack --dry-run --categories sport --languages english",
        ),
        Mistake("A day that is none", "pressroom fetch mediastack --dry-run --from 2026-02-30"),
        Mistake(
            "Days the wrong way round",
            "pressroom fetch mediastack --dry-run --from 2026-02-03 --to 2026-02-01",
        ),
        Mistake("In clear", "pressroom fetch mediastack --dry-run --base-url http://news.example"),
        Mistake(
            "A store that no recipe reads", "pressroom fetch mediastack --dry-run --into a.csv"
        ),
    ],
    "The model": [
        Mistake("No such folder", DRY + " model.base=./lama"),
        Mistake("No such folder in one's own home", DRY + " model.base=~/no-llama"),
        Mistake("A hub's model without a network", DRY + " model.base=meta-llama/Llama-2-7b-hf"),
        Mistake(
            "A tokenizer_config.json that is a list",
            DRY,
            _write("llama/tokenizer_config.json", "[]"),
        ),
        Mistake("Not a Llama", DRY, _config(model_type="gpt2")),
        Mistake("A config.json that is cut", DRY, _write("llama/config.json", "{")),
        Mistake("No tokenizer", DRY, _remove("llama/tokenizer.json")),
        Mistake(
            "Pickled weights only",
            DRY,
            lambda home: (
                _remove("llama/*.safetensors")(home),
                _write("llama/pytorch_model.bin", "x")(home),
            ),
        ),
        Mistake(
            "A tokenizer without eos",
            DRY,
            _write("llama/tokenizer_config.json", '{"bos_token": "<s>"}'),
        ),
    ],
    "This machine": [
        Mistake("Sharding without a GPU", DRY + " parallel.strategy=fsdp"),
        Mistake(
            "fp16 and paged optimizers without a GPU",
            DRY + " memory.precision=fp16 quantization.compute_dtype=float16 "
            "optimizer.name=paged_adamw_32bit",
        ),
    ],
    "The plan": [
        Mistake("A GPU that nobody has described", "pressroom plan 7b --gpus 8xa100"),
        Mistake("GPUs that are none", "pressroom plan 7b --gpus 8*h100"),
        Mistake("Neither GPUs here nor said", "pressroom plan 7b"),
        Mistake("No such model", "pressroom plan 7c --gpus h100"),
        Mistake(
            "A config.json that is cut",
            "pressroom plan llama/config.json --gpus h100",
            _write("llama/config.json", "{"),
        ),
        Mistake(
            "A model that is no Llama",
            "pressroom plan llama/config.json --gpus h100",
            _config(model_type="gpt2"),
        ),
        Mistake("A GPU without bf16", "pressroom plan 7b --gpus t4"),
        Mistake("GPUs that do not divide the batch", "pressroom plan llama2_13b --gpus 5xh100"),
        Mistake("Two machines at once", "pressroom plan 7b --gpus h100 --cluster c.yaml"),
        Mistake("Not a picture", "pressroom plan 7b --gpus h100 --curve scale.gif"),
        Mistake("No such cluster file", "pressroom plan 7b --cluster c.yaml"),
    ],
    "A cluster": [
        Mistake("No cluster file", f"{SUBMIT} c.yaml"),
        Mistake("No cluster at all", "pressroom submit my.yaml"),
        Mistake(
            "A cluster file with mistakes", f"{SUBMIT} c.yaml", _write("c.yaml", WRONG_CLUSTER)
        ),
        Mistake(
            "A recipe and a cluster file with mistakes",
            f"{SUBMIT} c.yaml optimizer.lr=1",
            _write("c.yaml", "partition: gpu\ngpu: h100\nnodes: 0\n"),
        ),
        Mistake("A run that was not submitted", "pressroom resume news"),
    ],
    "Experiments": [
        Mistake("Nothing varies", "pressroom sweep my.yaml"),
        Mistake(
            "A key that is unknown, and values that a recipe refuses",
            "pressroom sweep my.yaml optimizer.lr=1e-4,2e-4 lora.r=8,x",
        ),
        Mistake("Points that nothing tells apart", "pressroom sweep my.yaml lora.r=4,8"),
        Mistake("A range without a number of points", "pressroom sweep my.yaml lora.r=4..8"),
        Mistake(
            "No such strategy, and nothing to measure",
            "pressroom scale my.yaml --points 1 --strategies dpd --steps 5 --warmup-steps 5",
        ),
        Mistake("A single size", "pressroom size my.yaml --data 0.5"),
    ],
    "Runs": [
        Mistake("No such run", "pressroom merge nwes"),
        Mistake(
            "A folder that is no run", "pressroom merge news", _remove("runs/news/*/recipe.yaml")
        ),
        Mistake("A recipe's key as a prompt", "pressroom generate news generation.temperature=1"),
        Mistake("Training is not finished", "pressroom merge news", _remove("runs/news/*/adapter")),
        Mistake("A cut adapter", "pressroom merge news", _cut("runs/news/*/adapter/*.safetensors")),
        Mistake("A lost adapter", "pressroom merge news", _remove("runs/news/*/adapter/*tensors")),
        Mistake("Another model's adapter", "pressroom merge news", _other_adapter),
        Mistake("A pickled adapter", "pressroom merge news", _pickle_adapter),
        Mistake("A size without a unit", "pressroom merge news --shard-size 5"),
        Mistake(
            "Damaged notes of a run",
            RUN,
            (
                lambda home: [
                    _write(f"runs/news/{r.name}/stages.json", "{")(home)
                    for r in (home / "runs" / "news").iterdir()
                ]
            ),
        ),
        Mistake("A dataset that is gone", "pressroom evaluate news", _remove("data")),
        Mistake("Texts that are not there", "pressroom evaluate news --texts text.jsonl"),
        Mistake(
            "Texts of another kind",
            "pressroom evaluate news --texts texts.jsonl",
            _write("texts.jsonl", '{"text": "A storm"}\n{"continuation": 3}\n[\n'),
        ),
        Mistake("A cut shard", "pressroom evaluate news", _cut("data/*/held_out/*.arrow")),
        Mistake(
            "A shard with another bit", "pressroom evaluate news", _flip("data/*/held_out/*.arrow")
        ),
        Mistake(
            "Another base than was trained on", "pressroom merge news", _flip("llama/*tensors")
        ),
        Mistake("A manifest that is cut", "pressroom evaluate news", _cut("data/*/manifest.json")),
        Mistake(
            "A manifest that was edited",
            "pressroom evaluate news",
            _edit("data/*/manifest.json", '"held_out": ', '"held_out": 1'),
        ),
        Mistake(
            "A tokenizer with another bit",
            "pressroom train my.yaml seed=2",
            _flip("data/*/tokenizer/tokenizer.json"),
        ),
        Mistake(
            "A shard that nobody wrote",
            "pressroom evaluate news",
            _copy("data/*/train/data-*.arrow", "data-00001-of-00002.arrow"),
        ),
        Mistake("A dataset that cannot be verified", "pressroom verify data/news-0123"),
        Mistake("Tracing what is no article", "pressroom trace 8f2b41 articles/a.jsonl:3"),
        Mistake("Cut held-out texts", "pressroom generate news", _cut("data/*/held_out.jsonl")),
    ],
    "Texts": [
        Mistake(
            "Many mistakes of a call",
            "pressroom generate nwes city --file p.txt --format nws --out none/out.jsonl",
        ),
        Mistake(
            "Lines that are no prompts",
            "pressroom generate news --file p.jsonl",
            _write("p.jsonl", '{"prompt": "city!"}\n{"promt": "city!"}\n{"title": 3}\nstorm\n'),
        ),
        Mistake(
            "A line that is not UTF-8",
            "pressroom generate news --file p.txt",
            _write("p.txt", b"city!\nS\xe3o Paulo\n"),
        ),
        Mistake(
            "A prompt longer than the model's positions",
            "pressroom generate llama --file p.txt",
            _write("p.txt", "city!\n" + "storm " * 3000),
        ),
        Mistake(
            "A file that is something else",
            "pressroom generate llama city --out notes.jsonl",
            _write("notes.jsonl", '{"mine": 1}\n'),
        ),
        Mistake(
            "A model with code of its own",
            "pressroom generate llama city",
            _config(auto_map={"AutoModelForCausalLM": "mine.Model"}),
        ),
    ],
    "The command": [
        Mistake("Almost a command", "pressroom merg news"),
        Mistake("Nothing to work on", "pressroom run"),
        Mistake("A value that cannot be", "pressroom generate news --temperature -1"),
    ],
}
ALL = [mistake for mistakes in CATALOGUE.values() for mistake in mistakes]


@pytest.fixture(scope="session")
def workplace(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a model, articles, a recipe and a finished run of it."""
    from training import train

    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(tiny_model, folder / "llama")
    write_jsonl(folder / "articles" / "a.jsonl", invented_articles(40))
    (folder / "my.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("PRESSROOM_HOME", raising=False)
        run = train(recipe="my.yaml")
        run.path.rename(run.path.with_name("2026-11-22T10-00-00"))
    return folder


@pytest.fixture
def said(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[[Mistake], str]:
    """Makes a mistake in a copy of the workplace; returns what is said, without its paths."""
    folder = tmp_path / "news"
    shutil.copytree(workplace, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PRESSROOM_HOME", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HOME", "/home/you")
    monkeypatch.setattr(train_sections, "find_spec", lambda name: name == "tensorboard" or None)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def make(mistake: Mistake) -> str:
        mistake.make(folder)
        monkeypatch.setattr(sys, "argv", mistake.command.split())
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.entry()
        told = capfd.readouterr()
        assert ended.value.code in (1, 2), told
        assert "Traceback" not in told.err, told.err
        told_err = told.err.replace(str(folder), "~/news").replace("/home/you", "~")
        told_err = re.sub(r"(data/news-)[0-9a-f]{12}", r"\1HASH", told_err)
        lines = [line for line in told_err.splitlines() if not line[:2].isdigit()]
        return "\n".join(lines).strip()

    return make


FOUND: dict[Mistake, str] = {}


def page() -> str:
    """The whole catalogue, from what was said."""
    lines = [
        "# Errors",
        "",
        "Mistakes, the command that meets each, and what it says. Made by `make docs` from",
        "`tests/test_errors.py`, which makes every one of them in this recipe or beside it:",
        "",
        f"```yaml\n{RECIPE}```",
    ]
    for group, mistakes in CATALOGUE.items():
        lines += ["", f"## {group}"]
        for mistake in mistakes:
            lines += ["", _section(mistake)]
    return "\n".join(lines) + "\n"


def _section(mistake: Mistake) -> str:
    return f"### {mistake.title}\n\n`{mistake.command}`\n\n```\n{FOUND[mistake]}\n```"


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: mistake.title)
def test_what_is_said(mistake: Mistake, said: Callable[[Mistake], str]) -> None:
    FOUND[mistake] = said(mistake)
    if not os.environ.get("WRITE_DOCS"):
        assert _section(mistake) in PAGE.read_text(encoding="utf-8")


def test_the_page_has_nothing_else() -> None:
    if len(FOUND) < len(ALL):
        pytest.skip("not every mistake was made in this run")
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()
    assert len({mistake.title for mistake in ALL}) > 50
