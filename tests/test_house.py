"""Conventions as tests: what is imported when, what the documents promise, the size of files."""

import doctest
import importlib
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from pressroom.cli import COMMANDS

ROOT = Path(__file__).parents[1]
ROOMS = ("pressroom", "data_prep", "train", "launch", "generate", "demo", "bench")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.append(str(ROOT / "bench"))  # whose scripts import each other as they lie


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh process has imported after running code."""
    text = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_help_imports_neither_torch_nor_the_recipe() -> None:
    code = "from pressroom.cli import main; main(['--help'], standalone_mode=False)"
    loaded = modules_after(code)
    assert "pressroom.cli" in loaded
    assert loaded.isdisjoint({"torch", "pydantic", "yaml", "pressroom.recipe", "tqdm"})


@pytest.mark.parametrize(
    "module", ["pressroom.recipe", "data_prep.prepare", "launch.stages", "generate.commands"]
)
def test_what_answers_at_once_imports_no_torch(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert module in loaded
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "trl"})


def test_preparation_runs_without_torch(make_recipe) -> None:
    make_recipe()
    loaded = modules_after(
        "from pressroom.recipe import Recipe\nfrom data_prep.prepare import prepare\n"
        "prepare(Recipe.load('recipe.yaml'))"
    )
    assert "datasets" in loaded
    assert loaded.isdisjoint({"torch", "transformers"})


def test_every_command_is_in_the_readme_and_works() -> None:
    named = set(re.findall(r"`pressroom ([a-z]+)", README))
    assert set(COMMANDS) == named
    for target, _ in COMMANDS.values():
        module, _, name = target.partition(":")
        assert getattr(importlib.import_module(module), name).help


def test_the_first_command_stands_early() -> None:
    lines = README.splitlines()
    assert next(i for i, line in enumerate(lines, 1) if "make demo" in line) < 20


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_path_and_link_of_a_document_leads_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert "://" in link or (document.parent / link).exists(), link
    for name in re.findall(r"`([\w./]+\.(?:py|yaml|md|toml|txt|jsonl)|[\w./]+/)`", text):
        parts = name.strip("/").split("/")
        made = {
            "data",
            "runs",
            "recipe.yaml",
            "my.yaml",
            "tokenizer",
            "tensorboard",
            "stages.json",
            "checkpoints",
            "merged",
            "samples.jsonl",
            "rejects.jsonl",
            "error.txt",
        }
        assert parts[0] in made or (ROOT / name).exists(), name


def test_make_targets_that_documents_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {
        t
        for d in DOCUMENTS
        for t in re.findall(r"make (demo|test-gpu|test|check|docs)\b", d.read_text())
    }
    assert named == {"demo", "test", "test-gpu", "check", "docs"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_shipped_recipes_stand_in_the_readme() -> None:
    shipped = [f.name[:-5] for f in resources.files("train.recipes").iterdir() if ".yaml" in f.name]
    help_text = importlib.import_module("pressroom.cli").main.help
    assert all(name in help_text for name in shipped)


def test_examples_in_docstrings_are_true() -> None:
    tried = 0
    for path in sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            result = doctest.testmod(importlib.import_module(name))
            assert result.failed == 0, name
            tried += result.attempted
    assert tried >= 3


def test_files_fit_their_purpose() -> None:
    sizes = {p: len(p.read_text().splitlines()) for r in ROOMS for p in (ROOT / r).rglob("*.py")}
    assert sorted(sizes.values())[len(sizes) // 2] <= 130
    assert [p.name for p, n in sizes.items() if n > 250] == []


def test_nothing_names_a_machine_or_a_registry() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    mark = re.compile(r"(?<![\w.~])/(?:work|root|home/\w+)/|pypi\." + r"org|npmjs\." + r"org")
    for name in tracked:
        if name != "LICENSE":
            assert not mark.search((ROOT / name).read_text(encoding="utf-8")), name
