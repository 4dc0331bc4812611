"""Which set-up: every way to fill in what is `auto`, and the fastest that fits.

Pure functions: a recipe and the GPUs go in, recipes and reasons come out. Knows nothing of files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pressroom.console import UserError
from pressroom.geometry import Geometry
from pressroom.planner.gpu_kinds import GpuKind
from pressroom.planner.memory import GIB
from pressroom.planner.plan import Plan, plan
from pressroom.planner.setup import Setup
from pressroom.recipe import Recipe
from pressroom.train_sections import Auto, Checkpointing, Save, Strategy

MOST_REASONS = 2
"""Others that are named beside what was chosen."""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
LEAN: tuple[Save, ...] = ("all", "less", "least")
HOST_SHARE = 0.2
"""Of a CPU's memory, what weights may take that are dequantized once: others live there too."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs of a run."""

    kind: GpuKind
    nodes: int = 1
    gpus_per_node: int = 1

    @property
    def count(self) -> int:
        """All of them."""
        return self.nodes * self.gpus_per_node

    def but(self, **changes: int) -> "Gpus":
        """The same kind in other numbers."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        per_node = f"{self.gpus_per_node}x{self.kind.name}"
        return per_node if self.nodes == 1 else f"{self.nodes}x{per_node}"


@dataclass(frozen=True, kw_only=True)
class Option:
    """A recipe on GPUs, without `auto`, and its plan."""

    recipe: Recipe
    gpus: Gpus
    plan: Plan
    changes: tuple[str, ...] = ()
    """`key=value`, and `--gpus X`, that lead here."""


def option(recipe: Recipe, geometry: Geometry, gpus: Gpus, num_rows: int = 0) -> Option:
    """Plan a recipe, its speed filled in: the fastest that fits, or else the smallest.

    Args:
        recipe: Without `auto`, but for its speed.
        geometry: Of its model.
        gpus: That it trains on.
        num_rows: Of its dataset; 0 where there is none yet.

    Raises:
        UserError: Its batch does not divide over the GPUs.
    """
    ways = [_planned(way, geometry, gpus, num_rows) for way in _sped_up(recipe)]
    if gpus.kind.name == "cpu":
        room = HOST_SHARE * gpus.kind.memory_gib * GIB
        ways = [way for way in ways if way.plan.setup.cached <= room] or ways
    fastest_first = sorted(ways, key=lambda o: -o.plan.tokens_per_second_per_gpu)
    return (fitting(fastest_first) or [min(ways, key=lambda o: o.plan.peak_gib)])[0]


def _sped_up(recipe: Recipe) -> Iterator[Recipe]:
    """Every way to fill in `speed.save` and `speed.cache`.

    Under a checkpoint a lean layer's own savings do not count: it is computed again as a whole.
    """
    speed, saves = recipe.speed, LEAN
    if recipe.memory.activation_checkpointing != "none":
        saves = LEAN[:1]
    for save in saves if speed.save == "auto" else (speed.save,):
        for cache in ("none", "all") if speed.cache == "auto" else (speed.cache,):
            yield replace(recipe, speed=replace(speed, save=save, cache=cache))


def _planned(recipe: Recipe, geometry: Geometry, gpus: Gpus, num_rows: int) -> Option:
    setup = Setup.of(recipe, geometry, gpus.kind, gpus.nodes, gpus.gpus_per_node)
    planned = plan(
        setup,
        num_steps=recipe.num_steps(num_rows) if num_rows or recipe.optimizer.num_steps else None,
        num_rows=num_rows,
        every_steps=recipe.checkpoint.every_steps,
        num_kept=recipe.checkpoint.most_kept,
    )
    return Option(recipe=recipe, gpus=gpus, plan=planned)


def options(recipe: Recipe, geometry: Geometry, gpus: Gpus) -> list[Option]:
    """Every way to fill in what is `auto`, fastest first; the recipe itself where nothing is."""
    found = []
    for candidate in _filled(recipe, gpus.count):
        if candidate.batch.divides_over(gpus.count) and not list(candidate.broken_rules()):
            found.append(option(candidate, geometry, gpus))
    return sorted(found, key=lambda o: -o.plan.tokens_per_second_per_gpu)


def _filled(recipe: Recipe, world_size: int) -> Iterator[Recipe]:
    batch, memory, parallel = recipe.batch, recipe.memory, recipe.parallel
    strategies: Sequence[Strategy | Auto] = (parallel.strategy,)
    if parallel.strategy == "auto":
        strategies = STRATEGIES if world_size > 1 else ("ddp",)
    modes: Sequence[Checkpointing | Auto] = (memory.activation_checkpointing,)
    if memory.activation_checkpointing == "auto":
        modes = CHECKPOINTING
    sizes = [batch.micro_batch_size]
    if batch.micro_batch_size == "auto":
        most = max(batch.global_batch_size // world_size, 1)
        sizes = [n for n in range(1, most + 1) if batch.global_batch_size % (n * world_size) == 0]
    for strategy in strategies:
        for mode in modes:
            for size in sizes:
                yield replace(
                    recipe,
                    batch=replace(batch, micro_batch_size=size),
                    memory=replace(memory, activation_checkpointing=mode),
                    parallel=replace(parallel, strategy=strategy),
                )


def choose(recipe: Recipe, geometry: Geometry, gpus: Gpus) -> tuple[Option, list[str]]:
    """Fill in what is `auto`: the fastest that fits with a margin, or else the smallest.

    Returns:
        The way chosen, and an explanation for each key that was `auto`, where something fits.

    Raises:
        UserError: No micro-batch divides over the GPUs, or no strategy is possible.
    """
    if not recipe.autos:
        return option(recipe, geometry, gpus), []
    every = options(recipe, geometry, gpus)
    if not every:
        raise UserError(
            f"batch.global_batch_size: {recipe.batch.global_batch_size} rows do not divide over "
            f"{gpus.count} GPUs, or every strategy breaks a rule"
        )
    found = fitting(every)
    if not found:
        return min(every, key=lambda o: o.plan.peak_gib), []
    return found[0], [_because(key, found[0], found) for key in recipe.autos]


def fitting(found: Sequence[Option]) -> list[Option]:
    """Those that fit with a margin, or else those that fit, in their order."""
    return [o for o in found if o.plan.fits_well] or [o for o in found if o.plan.fits]


def _because(key: str, best: Option, found: Sequence[Option]) -> str:
    """Why a key got its value: the best that fits with each other value stands beside it."""
    others: dict[Any, Option] = {}
    for candidate in found:
        others.setdefault(candidate.recipe.value(key), candidate)
    chosen = best.recipe.value(key)
    others.pop(chosen)
    shown = [f"{speed(o)} with {described(o)}" for o in list(others.values())[:MOST_REASONS]]
    return f"{key}={chosen}: {speed(best)}" + "".join(f"\n    rather than {line}" for line in shown)


def speed(found: Option) -> str:
    """An option's rate and peak, in words."""
    planned = found.plan
    return (
        f"{planned.tokens_per_second_per_gpu:,.0f} tokens/s/GPU at {planned.peak_gib:.1f} of "
        f"{found.gpus.kind.memory_gib} GiB"
    )


def described(found: Option) -> str:
    """What an option is, in words."""
    recipe, save = found.recipe, found.plan.setup.save
    lean = "" if save == "plain" else f"lean layers that keep {save}, "
    return (
        f"{recipe.parallel.strategy}, {recipe.memory.activation_checkpointing} checkpointing, "
        f"{lean}micro-batches of {recipe.batch.micro_batch_size}"
    )
