"""How fast articles become shards, beside what bounds it and what others do: in one run.

    python bench/prep.py

Every comparison alternates: ours, theirs, ours, theirs; the figure is the median of the ratios of
neighbours, so that whatever else the machine does meets both alike.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from prep_inputs import (
    Text,
    cleaned,
    lay_out,
    llama2_tokenizer,
    real_articles,
    recombined,
    write_articles,
)
from prep_steps import Crew, Result, anonymous, as_trl, bare, packed, peak_while, rendered, timed

from pressroom.console import UserError, entry, log, say

CORES = len(os.sched_getaffinity(0))
UNIT = 32e6
"""Characters of a unit of work."""


@dataclass(frozen=True)
class Bench:
    """The inputs of a run, in a folder that is removed after it."""

    folder: Path
    raw: Path
    tokenizer: Path
    articles: list[Text]
    repeats: int
    sizes: tuple[float, ...]

    def recipe(self, sequence_length: int, raw: Path | None = None) -> Path:
        """A recipe of the real articles, or of others."""
        path = self.folder / f"recipe-{sequence_length}.yaml"
        values = {
            "name": "bench",
            "model": {"base": str(self.tokenizer)},
            "data": {"articles": [str(raw or self.raw)]},
            "sequence_length": sequence_length,
            "batch": {"global_batch_size": 1, "micro_batch_size": 1},
            "optimizer": {"learning_rate": 1e-4, "num_steps": 1},
        }
        path.write_text(json.dumps(values))
        return path

    def units(self, count: int) -> list[Path]:
        """The real articles in units of one size."""
        folder = self.folder / f"units-{count}"
        size = sum(len(title) + len(text) for title, text in self.articles) / count
        sizes = [size] * (count - 1) + [2 * size]
        return lay_out(folder, iter(self.articles), sizes)

    def alternate(self, *timed: Callable[[], Result]) -> list[list[Result]]:
        """Call them in turn, once to warm up and then as often as asked for; results of each."""
        turns = [[function() for function in timed] for _ in range(self.repeats + 1)]
        return [list(results) for results in zip(*turns[1:], strict=True)]


def limit(bench: Bench) -> Iterator[Result]:
    """The step on all cores beside bare tokenization on all cores, by processes and by threads."""
    units = bench.units(4 * CORES)
    recipe = bench.recipe(2048)
    library = Crew(recipe, 1, CORES)
    for processes, threads in sorted({(CORES, 1), (1, CORES)}, reverse=True):
        crew = Crew(recipe, processes, threads)
        ours, theirs = bench.alternate(
            lambda crew=crew: crew.pack(units),  # type: ignore[misc]
            lambda: library.call(bare, units).result(),
        )
        crew.close()
        yield {"processes": processes, "threads": threads, **_compared(ours, theirs)}
    library.close()


def trl(bench: Bench) -> Iterator[Result]:
    """The step beside datasets.map and TRL's packing, with all imported and started, and not."""
    from datasets import Dataset

    units, recipe = bench.units(CORES), bench.recipe(2048)
    texts = [text for unit in units for text in rendered(unit, "news")]
    Dataset.from_dict({"text": texts}).save_to_disk(bench.folder / "texts")

    def whole(processes: int, threads: int, step: Callable[[Crew], Result]) -> Result:
        def started() -> Result:
            crew = Crew(recipe, processes, threads)
            result = step(crew)
            crew.close()
            return {"step": result}

        result = timed(started)
        return {**result["step"], "whole_seconds": result["seconds"]}

    for kind in ("map", "SFTTrainer"):
        values = (bench.folder / "texts", bench.tokenizer, 2048, CORES, kind)
        mine, other = bench.alternate(
            lambda: whole(CORES, 1, lambda crew: crew.pack(units)),
            lambda values=values: whole(  # type: ignore[misc]
                1, CORES, lambda crew: crew.call(as_trl, *values).result()
            ),
        )
        pairs = zip(mine, other, strict=True)
        started = statistics.median(b["whole_seconds"] / a["whole_seconds"] for a, b in pairs)
        yield {
            "other": kind,
            **_compared(mine, other),
            "ratio_with_start": round(started, 3),
            "rows_of_2048": mine[0]["rows"],
            "other_rows_of_2048": other[0]["rows"],
        }


def workers(bench: Bench) -> Iterator[Result]:
    """The whole of `pressroom prep`, by one worker and by as many as there are cores.

    On articles recombined from real sentences, for the real ones are a single unit of work.
    """
    environment = {**os.environ, "PRESSROOM_HOME": str(bench.folder)}
    corpus_mb = sorted(bench.sizes)[len(bench.sizes) // 2]
    raw = write_articles(bench.folder / "corpus.jsonl", recombined(bench.articles), corpus_mb)
    recipe = bench.recipe(2048, raw)

    def prepare(count: int) -> Result:
        shutil.rmtree(bench.folder / "data", ignore_errors=True)
        command = [sys.executable, "-m", "data_prep.prepare", str(recipe)]
        command += ["--num-workers", str(count)]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise UserError(f"pressroom prep ended with {done.returncode} (see above)")
        return {}

    many, one = bench.alternate(
        lambda: timed(lambda: prepare(CORES)), lambda: timed(lambda: prepare(1))
    )
    yield {"workers": CORES, "corpus_mb": corpus_mb, **_compared(many, one)}


def memory(bench: Bench) -> Iterator[Result]:
    """The most memory of the step, unit by unit in one process, by the size of the corpus."""
    recipe = bench.recipe(2048)
    for number, size in enumerate(bench.sizes):
        whole, rest = divmod(size * 1e6, UNIT)
        sizes = [UNIT] * int(whole) + [rest] * bool(rest)
        units = lay_out(bench.folder / f"corpus-{number}", recombined(bench.articles), sizes)
        crew = Crew(recipe, 1, CORES)
        (pid,) = crew.pids
        start = anonymous(pid)
        peak = max(peak_while(crew.call(packed, unit), pid) for unit in units)
        crew.close()
        shutil.rmtree(bench.folder / f"corpus-{number}")
        yield {
            "corpus_mb": size,
            "rss_anon_start_mb": round(start / 1e6, 1),
            "rss_anon_peak_mb": round(peak / 1e6, 1),
        }


def packing(bench: Bench) -> Iterator[Result]:
    """How full the rows are, all articles packed together."""
    units = bench.units(1)
    for length in (2048, 4096):
        crew = Crew(bench.recipe(length), 1, CORES)
        result = crew.pack(units)
        crew.close()
        room = result["rows"] * length
        yield {
            "sequence_length": length,
            "articles": len(bench.articles),
            "rows": result["rows"],
            "full": round(result["tokens"] / room, 5),
        }


def _compared(ours: list[Result], theirs: list[Result]) -> Result:
    """Median seconds of both, and the median of how many times as long the other took."""
    told: Result = {}
    for name, of in (("seconds", "ratio"), ("core_seconds", "ratio_of_core_seconds")):
        pairs = [b[name] / a[name] for a, b in zip(ours, theirs, strict=True)]
        told |= {
            name: round(statistics.median(a[name] for a in ours), 6),
            f"other_{name}": round(statistics.median(b[name] for b in theirs), 6),
            of: round(statistics.median(pairs), 3),
            f"{of}_from_to": [round(min(pairs), 3), round(max(pairs), 3)],
        }
    counts = {"tokens": ours[0].get("tokens"), "other_tokens": theirs[0].get("tokens")}
    return {**told, "repeats": len(ours), **counts}


ITEMS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    function.__name__: function for function in (limit, trl, workers, memory, packing)
}


@click.command()
@click.option("--item", "items", multiple=True, type=click.Choice(list(ITEMS)))
@click.option("--articles", type=Path, help="JSONL with title and description. [real ones]")
@click.option("--tokenizer", type=Path, help="A model's folder. [Llama 2's]")
@click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--corpus-mb", "sizes", type=float, multiple=True, default=(10, 100, 300))
@click.option("--rows", "path", default="build/prep.jsonl", show_default=True, type=Path)
def main(
    items: tuple[str, ...],
    articles: Path | None,
    tokenizer: Path | None,
    repeats: int,
    sizes: tuple[float, ...],
    path: Path,
) -> None:
    """Preparation's speed, memory and packing, beside their bounds."""
    # It imports torch, which the processes that this file's name starts have no use for.
    from record import append, facts

    raw = (articles or real_articles()).absolute()
    folder = Path(tempfile.mkdtemp(prefix="bench-prep-"))
    model = folder / "model"
    shutil.copytree(tokenizer or llama2_tokenizer(), model)
    (model / "config.json").write_text("{}")
    try:
        bench = Bench(folder, raw, model, cleaned(raw), repeats, sizes)
        for item in items or ITEMS:
            for result in ITEMS[item](bench):
                load = [round(number, 1) for number in os.getloadavg()]
                append(path, {"bench": "prep", **facts(), "item": item, **result, "load": load})
                told = ", ".join(f"{name} {value}" for name, value in result.items())
                log.info("%s: %s", item, told)
                say(f"{item}: {told}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    entry(main)
