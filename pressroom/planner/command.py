"""`pressroom plan`: does it fit, how fast, what does it cost; nothing is queued.

A recipe, a size (`70b`) or a config.json goes in. Knows nothing of formulas.
"""

import json
from pathlib import Path

import click

from pressroom import dataset
from pressroom.base_model import geometry_of
from pressroom.cluster import Cluster
from pressroom.console import UserError, entry, require_picture, say
from pressroom.files import publish_bytes
from pressroom.geometry import SIZES, Geometry
from pressroom.planner.choice import Gpus, Option, choose, option
from pressroom.planner.curve import TOKENS, curve, summary
from pressroom.planner.fits import advice
from pressroom.planner.gpu_kinds import parse_gpus
from pressroom.planner.here import gpus_of, local_gpus
from pressroom.planner.table import table
from pressroom.recipe import AUTO_KEYS, Recipe

ALONE_ROWS, ALONE_LENGTH = 32, 2048
"""Rows of a step, a few more where GPUs do not divide them, and their tokens, of a model that is
planned without a recipe of its own."""


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", nargs=-1)
@click.option("--cluster", type=click.Path(path_type=Path), help="A cluster file: nodes and GPUs.")
@click.option("--gpus", help="GPUs to plan for: h200, 8xA100-80, 4x8xH100 (nodes x GPUs x kind).")
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON.")
@click.option("--curve", "picture", type=click.Path(path_type=Path), help="Draw 1 to 1,024 GPUs.")
def main(
    recipe: str,
    overrides: tuple[str, ...],
    cluster: Path | None,
    gpus: str | None,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Does it fit, how fast, what does it cost, before anything is queued.

    RECIPE may also be a size (7b, 13b, 70b), a config.json or a model's folder.
    """
    if picture:
        require_picture("--curve", picture)
    if cluster and gpus:
        raise UserError("--cluster and --gpus: give one of them")
    there = _gpus(cluster, gpus)
    found, geometry = _subject(recipe, overrides, there)
    found.require_fit(geometry)
    chosen, reasons = choose(found, geometry, there)
    manifest = dataset.newest(chosen.recipe)
    rows = manifest.rows("train") if manifest else 0
    chosen = option(chosen.recipe, geometry, there, rows)
    if as_json:
        say(json.dumps(chosen.plan.figures() | {"auto": reasons}, indent=2))
    else:
        say(table(found.name, chosen.plan))
        say("".join(f"\nauto: {reason}" for reason in reasons))
        if not chosen.plan.fits:
            say(advice(found, geometry, there))
    if picture:
        _draw(chosen, geometry, picture)


def _subject(name: str, overrides: tuple[str, ...], gpus: Gpus) -> tuple[Recipe, Geometry]:
    """The recipe and the geometry that a name stands for.

    A size or a model that stands alone is planned with adapters and optimizer of a shipped
    recipe, rows of 2048, and all that depends on the GPUs left to the planner.
    """
    path = Path(name)
    is_model = path.suffix == ".json" or (path / "config.json").is_file()
    if name.lower() not in SIZES and not is_model:
        try:
            found = Recipe.load(name, overrides)
        except UserError as error:
            there = path.is_file() or "shipped" not in str(error)
            sizes = "" if there else f"; nor a size ({', '.join(SIZES)})"
            raise UserError(f"{error}{sizes}") from None
        return found, geometry_of(found.model)
    geometry = Geometry.of(name)
    given = {override.partition("=")[0] for override in overrides}
    ours = {
        "name": path.name.lower(),
        "sequence_length": min(ALONE_LENGTH, geometry.max_positions),
        "batch.global_batch_size": -(-ALONE_ROWS // gpus.count) * gpus.count,
        **dict.fromkeys(AUTO_KEYS, "auto"),
    }
    values = [f"{key}={value}" for key, value in ours.items() if key not in given]
    return Recipe.load("llama2_70b", [*values, *overrides]), geometry


def _gpus(cluster: Path | None, text: str | None) -> Gpus:
    if cluster:
        return gpus_of(Cluster.load(cluster))
    if text:
        nodes, per_node, kind = parse_gpus(text)
        return Gpus(kind=kind, nodes=nodes, gpus_per_node=per_node)
    here = local_gpus()
    if here is None:
        raise UserError("there is no GPU here to plan for: say which, as in --gpus 8xA100-80")
    return here


def _draw(chosen: Option, geometry: Geometry, picture: Path) -> None:
    from pressroom.report import scaling_figure, to_bytes

    recipe, gpus, steps = chosen.recipe, chosen.gpus, chosen.plan.num_steps
    of_a_step = recipe.batch.global_batch_size * recipe.sequence_length
    tokens = steps * of_a_step if steps else TOKENS
    fixed = curve(recipe, geometry, gpus, tokens, grow=False)
    grown = curve(recipe, geometry, gpus, tokens, grow=True)
    say("\n" + summary(tokens, fixed, grown))
    title = f"{recipe.name} on {gpus.kind.name}, {gpus.gpus_per_node} to a node: predicted"
    drawn = scaling_figure(title, tokens, fixed, grown)
    publish_bytes(picture, to_bytes(drawn, picture.suffix[1:]))
    say(f"picture: {picture}")


if __name__ == "__main__":
    entry(main)
