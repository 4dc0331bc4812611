"""The README's commands are typed as they stand, in an empty folder with its own recipe in it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import invented_articles, write_jsonl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
IN_CI = ("git clone", "make demo", "source .venv")
"""What `.ci/run` does itself."""
BENCH = re.findall(r"`(python bench/\S+)`", README)


ON_A_CLUSTER = ("sbatch ", "pressroom resume")
"""Typed on a real one in tests/test_slurm_train.py and tests/test_slurm_chain.py."""


def commands() -> list[str]:
    """Those of all shell blocks, then those of the table, with names for RECIPE and RUN."""
    lines = [
        line.partition("  #")[0].strip()
        for block in BLOCKS
        for line in block.replace("\\\n", " ").splitlines()
    ]
    table = re.findall(r"^\| `(pressroom [^`]+)` \|", README, re.MULTILINE)
    filled = [
        re.sub(r"\[?RECIPE\]?", "my.yaml", c)
        .replace("RUN", "news")
        .replace("MODEL", "my.yaml")
        .replace("ARTICLE", "https://news.example/0/3")
        for c in table
    ]
    typed = [line for line in lines if line and not line.startswith(IN_CI)]
    every = dict.fromkeys([*typed, *filled])
    return [c for c in every if "--cluster" not in c and not c.startswith(ON_A_CLUSTER)]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: articles, a model, the recipe of the page, the strategies' files."""
    home = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_model, home / "llama")
    write_jsonl(home / "articles" / "a.jsonl", invented_articles(120))
    (recipe,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    base = re.search(r"meta-llama/Llama-2-7b-hf", recipe)
    assert base
    (home / "my.yaml").write_text(recipe.replace(base.group(), "./llama"))
    (home / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    return home


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(folder: Path, command: str) -> None:
    """In the order of the page: each finds what those before it have made."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONSAFEPATH": "1",
    }
    environment.pop("PRESSROOM_HOME", None)
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_has_them_all() -> None:
    found = commands()
    assert len(found) >= 11
    assert any(c.startswith("accelerate launch --num_processes 2 ") for c in found)
    assert all((ROOT / c.split()[1]).is_file() for c in BENCH)
    assert BENCH
    left = [line for block in BLOCKS for line in block.splitlines() if line.startswith(IN_CI)]
    assert left == [
        "git clone <this repository> pressroom && cd pressroom",
        "make demo",
        "source .venv/bin/activate",
    ]
