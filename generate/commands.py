"""The room's commands: evaluate, merge and generate, of a RUN.

They say what is wrong with RUN before what takes seconds to import is imported.
"""

import json
import re
from pathlib import Path
from typing import Literal, get_args

import click

from generate.command import generate
from generate.merge_names import adapter_and_run, merged_folder, run_alone
from pressroom.console import UserError, entry, harmless, say
from pressroom.train_sections import Dtype


@click.group()
def main() -> None:
    """What is done with a trained run."""


@main.command()
@click.argument("run_name", metavar="RUN")
@click.option("--texts", type=click.Path(path_type=Path), help="Judge these alone: a .jsonl.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def evaluate(run_name: str, texts: Path | None, as_json: bool) -> None:
    """What a run has learnt, on held-out articles: losses, base beside tuned, and its texts.

    Descriptions of held-out titles (`evaluation.titles`) are written and compared with real ones
    and, for near-copies, with every article that was trained on. `--texts` judges others, as
    `pressroom generate --out` writes them.
    """
    run = run_alone(run_name)
    from generate.evaluation_table import table

    if texts:
        from generate.given_texts import read

        given = read(texts, f"--texts {texts}")
        from generate.descriptions import judged

        result = {"written": {"file": texts.name, **judged(run, run.load_recipe(), given)}}
    else:
        from generate.evaluate import evaluate as carry_out
        from pressroom.report.page import try_publish

        result = carry_out(run, run.load_recipe())
        try_publish(run)
    say(json.dumps(result, indent=2) if as_json else harmless(table(result)))


@main.command()
@click.argument("what", metavar="RUN|ADAPTER")
@click.option(
    "--base-weights",
    type=click.Choice(["dequantized", "original"]),
    default="dequantized",
    show_default=True,
    help="Add the adapter to the weights that it was trained on, or to the base's own.",
)
@click.option("--dtype", type=click.Choice(get_args(Dtype)), help="As trained; bfloat16 for fp32.")
@click.option("--shard-size", default="5GB", show_default=True, help="The most of a file.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Prove it on logits.")
@click.option("--base", help="Of an ADAPTER: a folder or ORG/NAME, not the base that it names.")
@click.option("--output", type=click.Path(path_type=Path), help="A folder that is not there yet.")
def merge(
    what: str,
    base_weights: Literal["dequantized", "original"],
    dtype: Dtype | None,
    shard_size: str,
    verify: bool,
    base: str | None,
    output: Path | None,
) -> None:
    """Adapter + base -> one model folder that any client loads.

    ADAPTER is a folder that peft saved, also a checkpoint of a run. Called again it goes on where
    it was killed.
    """
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", shard_size, re.IGNORECASE):
        raise UserError(f"--shard-size {shard_size}: must be like 5GB or 500MB")
    adapter, run = adapter_and_run(what)
    if run and base:
        raise UserError(f"--base {base}: {run.path}: a run knows its base; leave it out")
    place = output or merged_folder(adapter, run)
    if place.exists() and (output or not run):
        raise UserError(f"{place}: is there already; another name by --output")
    from generate import merge as room
    from generate.merge_proof import describe

    how = room.Options(base_weights=base_weights, dtype=dtype, shard_size=shard_size, verify=verify)
    report = room.merge(room.source_of(adapter, run, base), place, how)
    say(f"{place}\n{describe(report)}".strip())


main.add_command(generate)


if __name__ == "__main__":
    entry(main)
