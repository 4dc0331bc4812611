"""Articles -> a tokenized, packed dataset: `pressroom prep RECIPE`.

    read, clean      files -> Article or Reject, line by line
    drop duplicates  by URL and by text
    split            train, held out
    tokenize         Article -> ids [n], labels [n], in pieces of at most a row
    pack             pieces -> rows of at most sequence_length tokens
    write            rows -> data/NAME-HASH/SPLIT/*.arrow, manifest.json

The folder appears when all of it is there. Knows no model, only its tokenizer.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from data_prep import shards
from data_prep.articles import Article, Reject, read_articles
from data_prep.dedupe import drop_duplicates, split
from pressroom import dataset
from pressroom.base_model import model_folder
from pressroom.console import Progress, UserError, entry, log, say
from pressroom.dataset import Manifest, Shard
from pressroom.files import publish_folder, require_home, sha256_file
from pressroom.recipe import Recipe
from pressroom.tokenizer import ArticleTokenizer


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--num-workers", type=click.IntRange(min=1), help="Processes. [one a CPU]")
@click.option("--group", default="", hidden=True, help="Of several tasks, what they share.")
@click.option("--task", default="0/1", hidden=True, help="Which of the group, of how many.")
def main(
    recipe: str, overrides: tuple[str, ...], num_workers: int | None, group: str, task: str
) -> None:
    """Articles -> tokenized, packed Arrow shards, in data/NAME-HASH/."""
    folder = prepare(Recipe.load(recipe, overrides))
    say(summary(folder, Manifest.read(folder)))


def prepare(recipe: Recipe) -> Path:
    """Make the dataset of a recipe, unless it is there already.

    Returns:
        Its folder.

    Raises:
        UserError: The articles or the tokenizer are missing, or nothing is left to train on.
    """
    require_home()
    tokenizer = ArticleTokenizer(model_folder(recipe.model, weights=False))
    spec = dataset.spec_of(recipe, tokenizer.fingerprint)
    files = dataset.article_files(recipe)
    articles = dataset.hash_articles(files)
    key = dataset.dataset_key(spec, articles)
    folder = dataset.dataset_folder(recipe.name, key)
    if folder.is_dir():
        dataset.check(folder, spec)
        log.info("%s is there already", folder)
        return folder
    kept, rejects = _read(files, recipe)
    train, held_out, undated = split(kept, recipe.data.held_out)
    rejects += undated
    with publish_folder(folder) as partial:
        counts: dict[str, Any] = {"read": len(kept) + len(rejects) - len(undated)}
        packing: dict[str, float] = {}
        all_shards: list[Shard] = []
        for name, chosen in zip(dataset.SPLITS, (train, held_out), strict=True):
            (partial / name).mkdir()
            file = "data-00000-of-00001.arrow"
            table = _table(chosen)
            written = shards.write_shard(partial / name / file, table, recipe, tokenizer)
            rejects += written.rejects
            if not written.rows:
                raise UserError(
                    f"data: not one article is left for the {name} split ({len(train)} to train "
                    f"on, {len(held_out)} held out by data.held_out, {len(rejects)} rejected)"
                )
            counts[name] = written.index.num_rows
            packing[name] = written.tokens / (written.rows * recipe.sequence_length)
            shard = Shard(
                split=name,
                file=f"{name}/{file}",
                rows=written.rows,
                tokens=written.tokens,
                trained_tokens=written.trained_tokens,
                sha256=written.sha256,
            )
            all_shards.append(shard)
            shards.describe_split(partial / name, [file], written.sha256[:16])
            good_places = set(written.index["place"].to_pylist())
            good = [article for article in chosen if article.place in good_places]
            if name == "held_out":
                _write_lines(partial / "held_out.jsonl", map(_as_text, good))
        counts["rejected"] = dict(Counter(reject.cause for reject in rejects).most_common())
        assert counts["read"] == len(rejects) + sum(counts[s] for s in dataset.SPLITS)
        _write_lines(partial / "rejects.jsonl", map(asdict, rejects))
        shards.describe(partial)
        tokenizer.save(partial / dataset.TOKENIZER)
        Manifest(
            key=key,
            spec=spec,
            articles=articles,
            counts=counts,
            packing=packing,
            shards=tuple(all_shards),
            files={
                str(path.relative_to(partial)): sha256_file(path)
                for path in sorted(partial.rglob("*"))
                if path.is_file() and path.suffix != ".arrow"
            },
            versions={n: version(n) for n in ("pressroom", "tokenizers", "pyarrow", "ftfy", "nh3")},
        ).write(partial)
    return folder


def summary(folder: Path, manifest: Manifest) -> str:
    """What is in a dataset, for a person."""
    rejected = manifest.counts["rejected"]
    causes = ", ".join(f"{count:,} {cause}" for cause, count in rejected.items())
    lines = [
        f"{folder}",
        f"  {manifest.counts['read']:,} articles read = {manifest.counts['train']:,} to train on"
        f" + {manifest.counts['held_out']:,} held out + {sum(rejected.values()):,} rejected"
        + (f" ({causes}; rejects.jsonl lists them)" if rejected else ""),
    ]
    for split_name in dataset.SPLITS:
        parts = [shard for shard in manifest.shards if shard.split == split_name]
        lines.append(
            f"  {split_name}: {sum(s.rows for s in parts):,} rows of "
            f"{manifest.spec['sequence_length']:,}, {sum(s.tokens for s in parts):,} tokens, "
            f"{sum(s.trained_tokens for s in parts):,} of them trained on, "
            f"{manifest.packing[split_name]:.2%} full"
        )
    return "\n".join(lines)


def _read(files: dict[str, Path], recipe: Recipe) -> tuple[list[Article], list[Reject]]:
    kept: list[Article] = []
    rejects: list[Reject] = []
    columns = asdict(recipe.data.columns)
    with Progress("read", len(files), "file") as progress:

        def items() -> Iterator[Article | Reject]:
            for name, path in files.items():
                yield from read_articles(
                    path, name, lower_case=recipe.data.lower_case, columns=columns
                )
                progress.advance(articles=f"{len(kept):,}")

        for item in drop_duplicates(items()):
            if isinstance(item, Article):
                kept.append(item)
            else:
                rejects.append(item)
    return kept, rejects


def _table(articles: list[Article]) -> pa.Table:
    names = ("id", "title", "description", "place")
    return pa.table(
        {name: pa.array([getattr(a, name) for a in articles], pa.string()) for name in names}
    )


def _as_text(article: Article) -> dict[str, str]:
    return {"id": article.id, "title": article.title, "description": article.description}


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    entry(main)
