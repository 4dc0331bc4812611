"""`pressroom scale`, `pressroom sweep` and `pressroom size`: a question on the command line.

Each makes points, and the same engine does the rest. Knows nothing of how points are run.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from launch.experiments import axes as typed
from launch.experiments import points
from launch.experiments.define import Question, define, load, require_number
from launch.experiments.engine import How, carry_out
from launch.experiments.place import Place, on_cluster, this_machine
from pressroom.cluster import Cluster
from pressroom.console import UserError, entry
from pressroom.experiment import Kind, Point, require_name
from pressroom.recipe import Recipe
from pressroom.train_sections import Strategy

F = TypeVar("F", bound=Callable[..., Any])
TOKENS = 100_000_000
"""Of the run whose time and cost are told: a hundred thousand articles of a thousand tokens."""


def _common(command: F) -> F:
    """The options that every experiment has."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Check everything, list the points."),
        click.option("--fresh", is_flag=True, help="Begin anew, though it has been done before."),
        click.option("--yes", is_flag=True, help="So many points are meant."),
        click.option("--name", help="Of the experiment; else the recipe's and the kind's."),
        click.option("--max-parallel", type=click.IntRange(1), help="Jobs at a time."),
        click.option("--cluster", "cluster_file", help="A cluster's file; else this machine."),
        click.argument("overrides", nargs=-1),
        click.argument("recipe", metavar="RECIPE"),
    ):
        command = option(command)
    return command


def _listed(kind: Callable[[str], Any], context: Any, parameter: Any, text: str | None) -> Any:
    """An option of values between commas."""
    try:
        words = [] if text is None else typed.split(text)
        found = [kind(word) for word in words]
    except ValueError:
        raise click.BadParameter(f"{text}: must be numbers between commas") from None
    if text is not None and (not all(words) or len(set(found)) < len(found)):
        raise click.BadParameter(f"{text}: has an empty value, or one twice")
    return found


def _values(kind: Callable[[str], Any]) -> Any:
    return partial(_listed, kind)


@click.command()
@_common
@click.option("--points", "counts", required=True, callback=_values(int), help="GPUs: 1,2,4,8.")
@click.option("--weak", is_flag=True, help="The batch grows with the GPUs; else it stays.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--strategies", callback=_values(str), help="Compared: ddp,fsdp,zero3.")
@click.option("--models", callback=_values(str), help="Compared: folders or hub ids.")
@click.option("--steps", type=click.IntRange(2), default=25, show_default=True, help="Of a run.")
@click.option(
    "--warmup-steps", type=click.IntRange(1), default=5, show_default=True, help="Not counted."
)
@click.option("--tokens", type=click.FloatRange(1), default=TOKENS, help="Whose cost is told.")
def scale(
    recipe: str,
    overrides: tuple[str, ...],
    counts: list[int],
    weak: bool,
    repeats: int,
    strategies: list[str],
    models: list[str],
    steps: int,
    warmup_steps: int,
    tokens: float,
    cluster_file: str | None,
    **options: Any,
) -> None:
    """How fast a recipe trains on 1, 2, 4 ... GPUs, and what it costs."""
    place = _place(cluster_file)
    wrong = _unknown_strategies(strategies)
    wrong += [f"--points {count}: at least 1" for count in counts if count < 1]
    if warmup_steps >= steps:
        wrong.append(f"--warmup-steps {warmup_steps}: must be fewer than --steps, {steps}")
    shapes = {}
    for count in counts if not any(count < 1 for count in counts) else ():
        try:
            shapes[count] = place.shape(count)
        except UserError as error:
            wrong.append(f"--points {error}")
    if wrong:
        raise UserError("\n".join(wrong))
    asked = points.scale(
        counts,
        shapes.__getitem__,
        repeats=repeats,
        strategies=strategies,
        models=models,
        batch_of=_grown(recipe, overrides, min(counts)) if weak else lambda count: {},
        short=points.short(steps),
    )
    settings = {"weak": weak, "steps": steps, "warmup_steps": warmup_steps, "repeats": repeats}
    axes: dict[str, list[Any]] = {
        "ranks": sorted(set(counts)),
        "strategy": strategies,
        "model": models,
    }
    _start("scale", recipe, overrides, axes, asked, settings | {"tokens": tokens}, place, options)


def _grown(recipe: str, overrides: Sequence[str], fewest: int) -> Callable[[int], dict[str, Any]]:
    """The recipe's global batch is that of the fewest GPUs; each GPU keeps its share."""
    size = Recipe.load(recipe, overrides).batch.global_batch_size
    if size % fewest:
        raise UserError(
            f"batch.global_batch_size: {size} rows do not divide over {fewest} GPUs, the fewest"
        )
    return lambda count: {"batch.global_batch_size": size // fewest * count}


def _unknown_strategies(strategies: Sequence[str]) -> list[str]:
    import difflib

    known = get_args(Strategy)
    found = []
    for name in strategies:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f" ({', '.join(known)})"
            found.append(f"--strategies {name}: no such strategy{hint}")
    return found


@click.command()
@_common
@click.option("--random", "number", type=click.IntRange(1), help="So many points, not the grid.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of --random.")
@click.option("--keep-all", is_flag=True, help="End no hopeless point early.")
def sweep(
    recipe: str,
    overrides: tuple[str, ...],
    number: int | None,
    seed: int,
    keep_all: bool,
    cluster_file: str | None,
    **options: Any,
) -> None:
    """Which settings are best: key=value,value of each, ranked by held-out loss."""
    place = _place(cluster_file)
    axes, constant = typed.parse_axes(overrides)
    shape = _whole(place, recipe, constant)
    asked = points.sweep(axes, shape, number=number, seed=seed)
    listed = {k: v if isinstance(v, list) else [str(v)] for k, v in axes.items()}
    settings = {"gives_up": not keep_all, "random": number, "seed": seed if number else None}
    _start("sweep", recipe, constant, listed, asked, settings, place, options)


@click.command()
@_common
@click.option("--models", callback=_values(str), help="Folders or hub ids: a,b,c.")
@click.option("--data", "fractions", callback=_values(float), help="Shares of the articles: 0.1,1.")
@click.option("--epochs", callback=_values(float), help="Passes over them: 1,2.")
def size(
    recipe: str,
    overrides: tuple[str, ...],
    models: list[str],
    fractions: list[float],
    epochs: list[float],
    cluster_file: str | None,
    **options: Any,
) -> None:
    """Does a larger model, more data or longer training pay: the same recipe over all of them."""
    place = _place(cluster_file)
    shape = _whole(place, recipe, overrides)
    asked = points.size(models, fractions, epochs, shape)
    axes: dict[str, list[Any]] = {
        "model.base": models,
        "data.fraction": fractions,
        "optimizer.num_epochs": epochs,
    }
    _start("size", recipe, overrides, axes, asked, {}, place, options)


def _place(cluster_file: str | None) -> Place:
    if cluster_file and cluster_file != "local":
        return on_cluster(Cluster.load(Path(cluster_file)), cluster_file)
    return this_machine()


def _whole(place: Place, recipe: str, overrides: Sequence[str]) -> tuple[int, int]:
    """The shape of a run that takes all there is, as far as its batch divides."""
    return place.whole(load(recipe, overrides, Point(name="", values={})))


def _evaluates(recipe: Recipe) -> Iterator[str]:
    if not recipe.evaluation.every_steps:
        yield (
            "evaluation.every_steps: is required here, for points are compared by held-out loss: "
            "as in evaluation.every_steps=50"
        )


def _start(
    kind: Kind,
    recipe: str,
    overrides: Sequence[str],
    axes: dict[str, list[Any]],
    asked: Sequence[Point],
    settings: dict[str, Any],
    place: Place,
    options: dict[str, Any],
) -> None:
    require_number(asked, meant=options["yes"])
    if options["name"]:
        require_name(options["name"])
    definition, ready = define(
        Question(
            kind=kind,
            name=options["name"],
            recipe_name=recipe,
            overrides=overrides,
            axes={key: values for key, values in axes.items() if values},
            points=asked,
            settings=settings,
            place=place,
            needs=_evaluates if kind != "scale" else lambda recipe: iter(()),
        )
    )
    how = How(
        dry_run=options["dry_run"], fresh=options["fresh"], max_parallel=options["max_parallel"]
    )
    carry_out(definition, ready, place, how)


if __name__ == "__main__":
    entry(scale)
