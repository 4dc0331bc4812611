"""Whether a dataset is whole, and what it says it is: `pressroom verify DATASET|RECIPE`.

First the bytes of every file, then every row, then the index against the rows. Of a damaged shard
what can be read is looked at. Runs on a CPU, without torch and, where a dataset's folder is named,
without the recipe and its model.
"""

import sys
from pathlib import Path

import click

from data_prep.audit import Split, Verdict, audit
from data_prep.figures import WHOLE, report
from data_prep.index import check_index
from data_prep.target import find_dataset
from pressroom import seal
from pressroom.console import UserError, entry, say
from pressroom.dataset import HELD_OUT, INDEX, REJECTS, SPLITS, TOKENIZER, Manifest
from pressroom.tokenizer import ArticleTokenizer

_SEALED = "the manifest is as it was written (its own checksum)"
_LISTED = f"articles read = trained on + held out + rejected; {HELD_OUT} and {REJECTS} list theirs"
_READ = "rows are looked at: the tokenizer that tells what they mean is there"


@click.command()
@click.argument("target", metavar="DATASET|RECIPE")
@click.argument("overrides", nargs=-1)
@click.option("--quick", is_flag=True, help="The bytes of all files, no rows: as training does.")
def main(target: str, overrides: tuple[str, ...], quick: bool) -> None:
    """Whether every file of a dataset is whole, and every row what the recipe says.

    DATASET is a folder that `pressroom prep` made; a RECIPE names the one that was made from it.
    Ends with 0 when all is well, with 1 otherwise.
    """
    folder = find_dataset(target, overrides)
    counted, verdicts = verify(folder, quick=quick)
    say(f"{folder}\n  {counted}\n\n{report(verdicts)}")
    if any(verdict.faults for verdict in verdicts):
        say(f"\nDelete {folder} and run `pressroom prep`: the same articles give the same bytes.")
        sys.exit(1)


def verify(folder: Path, *, quick: bool = False) -> tuple[str, list[Verdict]]:
    """Look at all of a dataset, or with `quick` at the bytes of its files alone.

    Returns:
        How much was looked at, and what was found.
    """
    sealed, whole = Verdict(_SEALED), Verdict(WHOLE)
    try:
        manifest = Manifest.read(folder)
    except UserError as error:
        sealed.note(1, str(error))
        return "nothing else can be checked without its manifest", [sealed]
    files = seal.files_of(manifest)
    wrong = seal.damages(folder, files) | seal.strangers(folder, manifest)
    if wrong:
        whole.note(1, "\n              ".join(f"{name}: {what}" for name, what in wrong.items()))
    size = sum(path.stat().st_size for path in map(folder.joinpath, files) if path.is_file())
    counted = f"{len(files):,} files, {size / 2**20:,.1f} MiB"
    if quick:
        return counted, [sealed, whole]
    if any(name.startswith(f"{TOKENIZER}/") for name in wrong):
        readable = Verdict(_READ)
        readable.note(1, f"{TOKENIZER}/ is damaged")
        return counted, [sealed, whole, readable]
    splits, verdicts = audit(folder, manifest, ArticleTokenizer(folder / TOKENIZER))
    if INDEX in manifest.files:
        verdicts += check_index(folder, manifest)
    counted += f"; {_told(splits)}"
    return counted, [sealed, whole, *verdicts, _check_lists(folder, manifest)]


def _told(splits: dict[str, Split]) -> str:
    """What the rows that were read amount to."""
    sums = [0, 0, 0, 0]
    for split in splits.values():
        of_split = (len(split.tokens_R), split.articles, split.tokens_R.sum(), split.trained_tokens)
        sums = [total + int(number) for total, number in zip(sums, of_split, strict=True)]
    return "{:,} rows, {:,} articles, {:,} tokens, {:,} of them trained on".format(*sums)


def _check_lists(folder: Path, manifest: Manifest) -> Verdict:
    """The manifest's sum of articles, and the files that name some of them."""
    verdict = Verdict(_LISTED)
    counts = manifest.counts
    rejected = sum(counts["rejected"].values())
    if counts["read"] != rejected + sum(counts[split] for split in SPLITS):
        verdict.note(1, f"{counts}")
    for name, expected in ((HELD_OUT, counts["held_out"]), (REJECTS, rejected)):
        if not (folder / name).is_file():
            continue  # told with the files
        with (folder / name).open("rb") as file:
            lines = sum(1 for _ in file)
        if lines != expected:
            verdict.note(1, f"{name} has {lines:,} lines, the manifest says {expected:,}")
    return verdict


if __name__ == "__main__":
    entry(main)
