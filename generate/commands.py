"""The room's commands: evaluate, merge and generate, of a RUN.

They say what is wrong with RUN before what takes seconds to import is imported.
"""

import json
import re
from pathlib import Path
from typing import Literal, get_args

import click

from generate.merge_names import adapter_and_run, merged_folder
from pressroom.console import UserError, entry, say
from pressroom.files import lines_until, publish_json, publish_text
from pressroom.runs import find_run
from pressroom.train_sections import Dtype


@click.group()
def main() -> None:
    """What is done with a trained run."""


@main.command()
@click.argument("run_name", metavar="RUN")
def evaluate(run_name: str) -> None:
    """Held-out perplexity of a run, base beside tuned."""
    run = find_run(run_name, trained=True)
    from generate import evaluate as room

    result = room.evaluate(run, run.load_recipe())
    publish_json(run.evaluation, result)
    say(room.table(result))


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


@main.command()
@click.argument("run_name", metavar="RUN")
@click.argument("prompts", nargs=-1)
@click.option("--title", "titles", multiple=True, help="Write the description of this title.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Where a text is cut.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0: the likeliest token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
def generate(
    run_name: str,
    prompts: tuple[str, ...],
    titles: tuple[str, ...],
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int,
) -> None:
    """Prompts or titles -> text, from a run's model."""
    run = find_run(run_name, trained=True)
    recipe = run.load_recipe()
    for prompt in prompts:
        if re.match(r"[a-z_]+(\.[a-z_]+)+=", prompt):
            raise UserError(
                f"{prompt}: looks like a recipe's key; here --temperature and --max-new-tokens say "
                "how, and `pressroom run RECIPE key=value` writes anew"
            )
    limit = max_new_tokens or recipe.generation.max_new_tokens
    warmth = recipe.generation.temperature if temperature is None else temperature
    from generate import sample as room

    if prompts or titles:
        for text in room.texts(run, recipe, prompts, titles, limit, warmth, seed):
            say(text)
        return
    samples = room.beside_base(run, recipe, limit, warmth, seed)
    if max_new_tokens is None and temperature is None:  # what the recipe asks for
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        publish_text(run.samples, lines_until(run.samples) + lines)  # those of mid-training stay
    say(room.show(samples))


if __name__ == "__main__":
    entry(main)
