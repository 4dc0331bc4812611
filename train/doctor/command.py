"""Is this machine fit to train, and what to do where it is not: `pressroom doctor [RECIPE]`.

Facts are gathered once (`machine.py`, `stack.py`, `inputs.py`); the findings are pure functions of
them. Loads no model, queues nothing, and asks the hub only for what a recipe names and the cache
lacks.
"""

import json
import sys
from dataclasses import asdict
from itertools import chain

import click

from pressroom.console import entry, say
from pressroom.recipe import Recipe
from train.doctor import fitness, gpu_fitness, needs
from train.doctor.fitness import Finding
from train.doctor.inputs import Inputs, look
from train.doctor.machine import Machine, probe

_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "problem": ("✗", "red")}


@click.command()
@click.argument("recipe_name", metavar="[RECIPE]", required=False)
@click.argument("overrides", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Facts and findings, for a script.")
def main(recipe_name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Is this machine fit to train, and what to do where it is not.

    With a RECIPE also what that recipe needs. Ends with 1 when there is a problem.
    """
    recipe = Recipe.load(recipe_name, overrides) if recipe_name else None
    machine = probe(deepspeed=bool(recipe and recipe.parallel.strategy.startswith("zero")))
    inputs = look(recipe, offline=machine.offline) if recipe else None
    found = findings(machine, recipe, inputs)
    fit = all(finding.level != "problem" for finding in found)
    if as_json:
        facts = {"machine": asdict(machine), "inputs": inputs and asdict(inputs)}
        told = {"fit": fit, "findings": [asdict(finding) for finding in found], **facts}
        say(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        say(show(found, recipe, colour=sys.stdout.isatty()))
    if not fit:
        sys.exit(1)


def findings(
    machine: Machine, recipe: Recipe | None = None, inputs: Inputs | None = None
) -> list[Finding]:
    """All that there is to say about a machine, and about a recipe on it.

    Args:
        machine: The facts.
        recipe: What is to be trained.
        inputs: What is here of the recipe's inputs; given with it.
    """
    found = list(chain.from_iterable(r(machine) for r in (*fitness.RULES, *gpu_fitness.RULES)))
    if recipe and inputs:
        found += chain.from_iterable(rule(machine, recipe, inputs) for rule in needs.RULES)
    return found


def show(found: list[Finding], recipe: Recipe | None, *, colour: bool) -> str:
    """Findings as aligned lines, advice below each, and the verdict."""
    width = max(len(finding.subject) for finding in found)
    lines = []
    for finding in found:
        mark, shade = _MARKS[finding.level]
        lines.append(f"{_style(mark, shade, colour)} {finding.subject:{width}}  {finding.what}")
        if finding.advice:
            lines.append(f"  {'':{width}}  -> {finding.advice}")
    problems = sum(finding.level == "problem" for finding in found)
    notes = sum(finding.level == "note" for finding in found)
    what = f" for {recipe.name}" if recipe else ""
    verdict = f"not fit{what}: {problems} to mend" if problems else f"fit{what}"
    verdict = _style(verdict, "red" if problems else "green", colour)
    return "\n".join([*lines, "", verdict + (f", {notes} to know" if notes else "")])


def _style(text: str, shade: str, colour: bool) -> str:
    return click.style(text, fg=shade) if colour else text


if __name__ == "__main__":
    entry(main)
