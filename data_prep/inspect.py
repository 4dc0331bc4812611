"""What a model will be trained on: `pressroom inspect DATASET|RECIPE`.

Shows some rows as text with the loss mask, counts all of them, and checks each. Runs on a CPU,
without torch and, where a dataset's folder is named, without the recipe and its model.
"""

import os
import sys
from pathlib import Path

import click
import numpy as np

from data_prep.audit import Verdict, audit
from data_prep.decoded import legend, show_row
from data_prep.figures import WHOLE, figures, report
from data_prep.target import find_dataset
from pressroom import dataset
from pressroom.console import UserError, entry, require_picture, say
from pressroom.dataset import Manifest
from pressroom.files import publish_bytes
from pressroom.rows import open_shard, sound
from pressroom.seal import require_whole
from pressroom.tokenizer import ArticleTokenizer


@click.command()
@click.argument("target", metavar="DATASET|RECIPE")
@click.argument("overrides", nargs=-1)
@click.option("--split", type=click.Choice(dataset.SPLITS), default="train", show_default=True)
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Rows to show, spread evenly from the first to the last.",
)
@click.option("--row", "only", type=click.IntRange(min=0), help="The one row to show, from 0.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw lengths and packing of the split into this file (.png, .svg, .pdf).",
)
@click.option("--no-color", is_flag=True, help="Mark what is not trained on by brackets.")
def main(
    target: str,
    overrides: tuple[str, ...],
    split: str,
    rows: int,
    only: int | None,
    picture: Path | None,
    no_color: bool,
) -> None:
    """Rows of a dataset as text with the loss mask, its figures, and checks of every row.

    DATASET is a folder that `pressroom prep` made; a RECIPE names the one that was made from it.
    Ends with 0 when every check holds, with 1 otherwise.
    """
    if picture:
        require_picture("--picture", picture)
    folder = find_dataset(target, overrides)
    manifest = Manifest.read(folder)
    chosen = _choose(manifest.rows(split), split, rows, only)
    require_whole(folder, manifest)  # damaged shards are not shown
    tokenizer = ArticleTokenizer(folder / dataset.TOKENIZER)
    room = manifest.spec["sequence_length"]
    splits, verdicts = audit(folder, manifest, tokenizer)
    checked = [Verdict(WHOLE), *verdicts]
    color = sys.stdout.isatty() and not (no_color or os.environ.get("NO_COLOR"))
    if chosen:
        say(legend(tokenizer, color=color) + "\n")
    for row in chosen:
        say(_row_text(folder, manifest, split, row, tokenizer, color=color) + "\n")
    say(f"{folder}\n{figures(splits, room)}\n\n{report(checked)}")
    if picture:
        from pressroom.report import packing_figure, to_bytes

        s = splits[split]
        title = f"{folder.name}, {split}"
        drawn = packing_figure(title, s.lengths_P, s.tokens_R, s.pieces_R, room)
        publish_bytes(picture, to_bytes(drawn, picture.suffix[1:]))
        say(f"\n{picture}")
    if any(verdict.faults for verdict in verdicts):
        sys.exit(1)


def _choose(num_rows: int, split: str, rows: int, only: int | None) -> list[int]:
    if only is None:
        return [round(n) for n in np.linspace(0, num_rows - 1, min(rows, num_rows)).tolist()]
    if only >= num_rows:
        raise UserError(f"--row {only}: {split} has {num_rows:,} rows, 0 to {num_rows - 1}")
    return [only]


def _row_text(
    folder: Path,
    manifest: Manifest,
    split: str,
    number: int,
    tokenizer: ArticleTokenizer,
    *,
    color: bool,
) -> str:
    before = 0
    for shard in (s for s in manifest.shards if s.split == split):
        if number < before + shard.rows:
            name = f"{split} row {number} ({shard.file}, its row {number - before})"
            rows = open_shard(folder / shard.file).slice(number - before, 1).to_batches()
            if not rows or not sound(rows[0]).all():
                return f"{name}: its columns do not agree, so it cannot be shown"
            (row,) = rows[0].to_pylist()
            return show_row(name, row, manifest.spec["sequence_length"], tokenizer, color=color)
        before += shard.rows
    raise AssertionError(number)


if __name__ == "__main__":
    entry(main)
