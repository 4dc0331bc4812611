"""The room's commands: evaluate, merge and generate, of a RUN.

They say what is wrong with RUN before what takes seconds to import is imported.
"""

import json
import re

import click

from pressroom.console import UserError, entry, say
from pressroom.files import lines_until, publish_json, publish_text
from pressroom.runs import find_run


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
@click.argument("run_name", metavar="RUN")
def merge(run_name: str) -> None:
    """Adapter + base -> one model folder that any client loads."""
    run = find_run(run_name, trained=True)
    from generate import merge as room

    report = room.merge(run, run.load_recipe())
    say(f"{run.merged}\n{room.describe(report)}")


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
