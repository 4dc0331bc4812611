"""What would fit where a recipe does not, in order of what it costs.

Pure functions, as `pressroom/planner/choice.py`. Knows nothing of files.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from pressroom.console import UserError
from pressroom.geometry import Geometry
from pressroom.planner.choice import Gpus, Option, choose, described, option, options, speed
from pressroom.planner.gpu_kinds import KINDS
from pressroom.recipe import Recipe
from pressroom.train_sections import Quantization


def resolve(recipe: Recipe, geometry: Geometry, gpus: Gpus) -> tuple[Recipe, list[str]]:
    """The recipe without `auto`, and why.

    Speed never stops a run: where there is no plan for the recipe, it is left as it is.

    Raises:
        UserError: Something else is `auto` and nothing fits; what would is named.
    """
    if not recipe.autos:
        with suppress(UserError):
            recipe = option(recipe, geometry, gpus).recipe
        return recipe, []
    chosen, reasons = choose(recipe, geometry, gpus)
    if not chosen.plan.fits:
        raise UserError(
            f"{', '.join(recipe.autos)}: nothing fits {gpus}: the smallest peak is "
            f"{chosen.plan.peak_gib:.1f} of {gpus.kind.memory_gib} GiB, with "
            f"{described(chosen)}\n" + advice(recipe, geometry, gpus)
        )
    return chosen.recipe, reasons


def nearest_fits(recipe: Recipe, geometry: Geometry, gpus: Gpus, most: int = 4) -> list[Option]:
    """What would fit, in order of what it costs: first what trains the same, then what does not.

    Within a kind of change the fastest comes first. Changes: micro-batch, checkpointing and
    strategy; quantization; half the row; then more GPUs and other kinds, the fewest GiB first.
    """
    found: list[Option] = []
    free = _freed(recipe)
    tries: list[Recipe] = [free]
    quantization = recipe.quantization
    if quantization is None:
        tries.append(replace(free, quantization=Quantization()))
    elif not quantization.double_quant:
        tries.append(replace(free, quantization=replace(quantization, double_quant=True)))
    tries.append(replace(tries[-1], sequence_length=recipe.sequence_length // 2))
    for candidate in tries:
        fitting = [o for o in options(candidate, geometry, gpus) if o.plan.fits_well]
        if fitting:
            found.append(_with_changes(recipe, fitting[0], gpus))
    if not found:
        found = list(islice(_other_gpus(recipe, geometry, gpus), most))
    return found


def _freed(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        batch=replace(recipe.batch, micro_batch_size="auto"),
        memory=replace(recipe.memory, activation_checkpointing="auto"),
        parallel=replace(recipe.parallel, strategy="auto"),
    )


def _other_gpus(recipe: Recipe, geometry: Geometry, gpus: Gpus) -> Iterator[Option]:
    """More GPUs of this kind, or another kind, by the memory that they have in all."""
    candidates = [
        Gpus(kind=kind, gpus_per_node=count)
        for kind in KINDS.values()
        for count in (1, 2, 4, 8)
        if kind is gpus.kind or kind.memory_gib > gpus.kind.memory_gib
    ]
    for others in sorted(candidates, key=lambda g: (g.count * g.kind.memory_gib, g.count)):
        free = _freed(recipe)
        if recipe.memory.precision == "bf16" and not others.kind.has_bf16:
            continue
        fitting = [o for o in options(free, geometry, others) if o.plan.fits_well]
        if fitting:
            yield _with_changes(recipe, fitting[0], gpus)


def _with_changes(recipe: Recipe, found: Option, gpus: Gpus) -> Option:
    keys = (
        *("batch.micro_batch_size", "memory.activation_checkpointing", "parallel.strategy"),
        *("quantization", "quantization.double_quant", "sequence_length"),
    )
    changes = [f"{k}={_yaml(found.recipe.value(k))}" for k in keys if _differs(k, recipe, found)]
    if str(found.gpus) != str(gpus):
        changes.insert(0, f"--gpus {found.gpus}")
    return replace(found, changes=tuple(changes))


def _differs(key: str, recipe: Recipe, found: Option) -> bool:
    if key == "quantization":
        return recipe.quantization is None and found.recipe.quantization is not None
    if key == "quantization.double_quant" and recipe.quantization is None:
        return False
    return bool(recipe.value(key) != found.recipe.value(key))


def _yaml(value: object) -> str:
    if isinstance(value, Quantization):
        return "{}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def advice(recipe: Recipe, geometry: Geometry, gpus: Gpus) -> str:
    """The nearest fits as lines to type, or that there is none."""
    found = nearest_fits(recipe, geometry, gpus)
    if not found:
        return "nothing that the planner knows would fit"
    lines = [f"  {' '.join(o.changes) or 'as it is'}\n      {speed(o)}" for o in found]
    return "what would fit, the cheapest change first:\n" + "\n".join(lines)
