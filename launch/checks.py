"""Everything that a login node can know before a job is queued, all problems at once.

The cluster file against its SLURM, paths against what the nodes see, the recipe against its model,
dataset and accelerate config, the plan against the GPUs. Imports no torch, downloads nothing and
changes nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TypeVar

from launch import accelerate_files
from launch.capacity import slurm_problems
from launch.shared import unshared, warn_of_python
from pressroom import dataset, quantized_base
from pressroom.base_model import (
    bytes_to_download,
    geometry_of,
    is_hub_id,
    local_folder,
    model_folder,
)
from pressroom.cluster import Cluster
from pressroom.console import UserError, log
from pressroom.files import require_home
from pressroom.geometry import Geometry
from pressroom.gpus import needs_gpu
from pressroom.hub import PREFIX
from pressroom.planner.choice import option
from pressroom.planner.fits import advice, resolve
from pressroom.planner.here import gpus_of
from pressroom.recipe import Recipe
from pressroom.sections import Model
from pressroom.spec import spec_of
from pressroom.tokenizer import ArticleTokenizer

T = TypeVar("T")


def problems(
    recipe: Recipe, cluster: Cluster, cluster_file: str | Path, *, needs_dataset: bool
) -> list[str]:
    """Everything that is wrong with training a recipe on a cluster, as far as is seen from here.

    What only may be wrong is a warning: the nodes can have what a login node has not.

    Args:
        recipe: The recipe, `auto` or not.
        cluster: The cluster.
        cluster_file: Where it was read from, for messages.
        needs_dataset: Whether the dataset must be there; else the articles alone.
    """
    found = slurm_problems(cluster, str(cluster_file))
    found += recipe_problems(recipe, cluster, cluster_file, needs_dataset=needs_dataset)
    warn(recipe, cluster, str(cluster_file))
    return list(dict.fromkeys(found))


def recipe_problems(
    recipe: Recipe,
    cluster: Cluster,
    cluster_file: str | Path,
    *,
    needs_dataset: bool,
    may_not_fit: bool = False,
) -> list[str]:
    """`problems`, without what SLURM must be asked; and that the plan fits may not matter."""
    found: list[str] = []

    def tried(call: Callable[[], T]) -> T | None:
        try:
            return call()
        except UserError as error:
            found.append(str(error))
            return None

    tried(require_home)
    tried(recipe.tracking.require)
    with _as_on_a_node(recipe):
        folder = tried(lambda: present(recipe.model))
        geometry = tried(lambda: _geometry(recipe.model, folder))
        files = tried(lambda: dataset.article_files(recipe)) or {}
        if folder and files and needs_dataset:
            tried(lambda: _dataset(recipe, folder))
    if folder:
        tried(lambda: quantized_base.find(folder, recipe.quantization, recipe.memory.precision))
    places = {"model.base": [folder] if folder else [], "data.articles": list(files.values())}
    found += [f"{cluster_file}: shared: {problem}" for problem in unshared(cluster, places)]
    if recipe.batch.micro_batch_size != "auto":
        tried(lambda: recipe.batch.gradient_accumulation_steps(cluster.world_size))
    settled = recipe
    if geometry and not may_not_fit:
        settled = tried(lambda: planned(recipe, cluster, geometry)) or recipe
    if settled.parallel.strategy != "auto":
        found += strategy_problems(settled, cluster)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def _as_on_a_node(recipe: Recipe) -> Iterator[None]:
    """Find of a hub what a node without a network will find: the cache as it is."""
    if not (
        is_hub_id(recipe.model.base) or any(a.startswith(PREFIX) for a in recipe.data.articles)
    ):
        yield
        return
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def present(model: Model) -> Path:
    """The model's folder, nothing of it still at a hub.

    Raises:
        UserError: It is not here, or not whole.
    """
    if local_folder(model.base).is_dir() or not is_hub_id(model.base):
        return model_folder(model)
    try:
        absent = bytes_to_download(model)
    except UserError:
        absent = -1  # why the hub does not give it, `pressroom download` says
    if not absent:
        return model_folder(model)
    what = model.base if model.revision == "main" else f"{model.base}@{model.revision}"
    size = f"{absent / 2**30:.1f} GiB of it are missing" if absent > 0 else "it is not whole"
    raise UserError(
        f"model.base: {model.base}: {size} in this machine's cache, and jobs bring nothing: "
        f"`pressroom download {what}` does"
    )


def _geometry(model: Model, folder: Path | None) -> Geometry | None:
    """The model's geometry; of Llama 2 also where the model is not here.

    Raises:
        UserError: It is here, and no Llama.
    """
    try:
        return geometry_of(model)
    except UserError:
        if folder:
            raise
    return None


def _dataset(recipe: Recipe, folder: Path) -> None:
    spec = spec_of(recipe, ArticleTokenizer(folder).fingerprint)
    dataset.check(dataset.find(recipe, spec), spec)


def planned(recipe: Recipe, cluster: Cluster, geometry: Geometry) -> Recipe:
    """The recipe without `auto`, which fits its model and the cluster's GPUs; CPUs are not judged.

    Raises:
        UserError: It does not fit, with what would; or its batch does not divide over the ranks.
    """
    recipe.require_fit(geometry)
    gpus = gpus_of(cluster)
    settled, _ = resolve(recipe, geometry, gpus)
    plan = option(settled, geometry, gpus).plan
    if cluster.gpus_per_node and not plan.fits:
        raise UserError(
            f"the plan does not fit {gpus}: the peak is {plan.peak_gib:.1f} of "
            f"{gpus.kind.memory_gib} GiB\n{advice(recipe, geometry, gpus)}"
        )
    return settled


def strategy_problems(recipe: Recipe, cluster: Cluster) -> list[str]:
    """Whether the file of the recipe's strategy is still what the strategy is."""
    name = recipe.parallel.strategy if cluster.world_size > 1 else "single"
    path = Path(str(resources.files("accelerate_configs") / f"{name}.yaml"))
    return accelerate_files.problems(path, name)


def warn(recipe: Recipe, cluster: Cluster, file: str) -> None:
    """Say what may be wrong: the nodes can have what a login node has not."""
    warn_of_python(cluster, file)
    for need in () if cluster.gpus_per_node else needs_gpu(recipe):
        if ": auto " not in need:  # it becomes what CPUs can do
            log.warning("%s: gpus_per_node is 0, and %s", file, need)
