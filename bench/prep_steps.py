"""What is compared, as functions that processes of their own run, and those processes.

`packed` is the product's step; `bare` tokenizes the same texts and does nothing with them;
`as_trl` does what a user of TRL does with datasets. Knows nothing of rows of figures.
"""

import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from data_prep.shards import write_shard
from pressroom.base_model import model_folder
from pressroom.prompts import FORMATS
from pressroom.recipe import Recipe
from pressroom.tokenizer import ArticleTokenizer

Result = dict[str, Any]
_STATE: dict[str, Any] = {}


class Crew:
    """Processes that have the recipe and its tokenizer, each with some threads for tokenizing."""

    def __init__(self, recipe: Path, processes: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(processes)
        before = os.environ.get("RAYON_NUM_THREADS")
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        self._pool = ProcessPoolExecutor(processes, context, _start, (recipe, barrier))
        # Each waits for the others, so every one of them is there and has loaded.
        self.pids = sorted({f.result() for f in [self.call(os.getpid) for _ in range(processes)]})
        if before is None:
            del os.environ["RAYON_NUM_THREADS"]
        else:
            os.environ["RAYON_NUM_THREADS"] = before

    def call(self, function: Callable[..., Any], *values: Any) -> "Future[Any]":
        """Start a function in one of the processes."""
        return self._pool.submit(function, *values)

    def pack(self, units: Sequence[Path]) -> Result:
        """Pack units, whoever is free the next, and time it."""
        start = time.perf_counter()
        done = [future.result() for future in [self.call(packed, unit) for unit in units]]
        seconds = time.perf_counter() - start
        return {key: sum(one[key] for one in done) for key in done[0]} | {"seconds": seconds}

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def _start(recipe: Path, barrier: Any) -> None:
    loaded = Recipe.load(str(recipe), [])
    tokenizer = ArticleTokenizer(model_folder(loaded.model, weights=False))
    _STATE.update(recipe=loaded, tokenizer=tokenizer, texts={})
    tokenizer.encode_articles(["a"], ["b"])
    barrier.wait()


def timed(function: Callable[[], Result]) -> Result:
    """What a function gives, and how long it took: by the clock, and on a core, children too."""
    before, start = _core_seconds(), time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    return {**result, "seconds": seconds, "core_seconds": _core_seconds() - before}


def _core_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def rendered(unit: Path, name: str) -> list[str]:
    """The texts of a unit's articles, as they are tokenized."""
    table = _read(unit)
    pairs = zip(table["title"].to_pylist(), table["description"].to_pylist(), strict=True)
    format_ = FORMATS[name]
    return [format_.render_prompt(title) + format_.render_answer(text) for title, text in pairs]


def _read(unit: Path) -> pa.Table:
    with pa.memory_map(str(unit)) as source:
        return pa.ipc.open_file(source).read_all()


def packed(unit: Path) -> Result:
    """The product: tokenize, mask, pack, write."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "shard.arrow"

        def step() -> Result:
            written = write_shard(path, _read(unit), _STATE["recipe"], _STATE["tokenizer"])
            return {"rows": written.rows, "tokens": written.tokens}

        return timed(step)


def bare(units: Sequence[Path]) -> Result:
    """Tokenize all texts in one call; reading and rendering them is not timed."""
    key = str(units)
    if key not in _STATE["texts"]:
        name = _STATE["recipe"].prompt.format
        _STATE["texts"] = {key: [text for unit in units for text in rendered(unit, name)]}
    texts, tokenizer = _STATE["texts"][key], _STATE["tokenizer"]._tokenizer
    kept: list[Any] = []  # so that freeing it is not timed either

    def step() -> Result:
        kept.extend(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return {}

    return timed(step) | {"tokens": sum(map(len, kept))}


def as_trl(dataset: Path, tokenizer: Path, capacity: int, processes: int, kind: str) -> Result:
    """What a user of TRL does to a data set of texts on the disk.

    Args:
        dataset: A folder that `datasets` saved, with a column `text`.
        tokenizer: The model's folder.
        capacity: Tokens of a row.
        processes: For each `map`.
        kind: `map`: eos, ids and labels in one batched `map`, then `pack_dataset`. `SFTTrainer`:
            that trainer's own preparation.
    """
    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    eos = _STATE["tokenizer"].special_names()[_STATE["tokenizer"].eos_id]
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token=eos)
    options = {"num_proc": processes, "load_from_cache_file": False}

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids = fast([text + eos for text in batch["text"]], return_attention_mask=False)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    def mapped(texts: Any) -> Any:
        tokens = texts.map(tokenize, batched=True, remove_columns=["text"], **options)
        return pack_dataset(tokens, capacity, "bfd_split", options)

    def prepared(texts: Any) -> Any:
        """As SFTTrainer does it by itself."""
        config = SFTConfig(
            output_dir=str(copied),
            use_cpu=True,
            bf16=False,
            max_length=capacity,
            packing=True,
            packing_strategy="bfd_split",
            dataset_num_proc=processes,
            shuffle_dataset=False,
        )
        trainer: Any = SimpleNamespace(
            _tokenizer=fast, chat_template=None, completion_only_loss=False
        )
        return SFTTrainer._prepare_dataset(trainer, texts, fast, config, True, None, "train")

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        copied = Path(folder) / "texts"
        shutil.copytree(dataset, copied)
        texts = datasets.load_from_disk(str(copied))
        make = mapped if kind == "map" else prepared
        result = timed(lambda: {"made": make(texts)})
        made = result.pop("made")
        count = sum(sum(lengths) for lengths in made["seq_lengths"])
        return {**result, "rows": len(made), "tokens": count}


def peak_while(future: "Future[Any]", pid: int) -> int:
    """The most anonymous memory, in bytes, that a process holds while something is done."""
    peak = anonymous(pid)
    waiting = threading.Event()
    future.add_done_callback(lambda _: waiting.set())
    while not waiting.wait(0.005):
        peak = max(peak, anonymous(pid))
    future.result()
    return peak


def anonymous(pid: int) -> int:
    """RssAnon of a process: what it holds besides mapped files, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
