"""Fine-tune: what runs on every rank, under `accelerate launch -m train.sft RECIPE`.

    read the recipe, see that every rank is fit to train it
    agree on the run directory and the dataset
    check the dataset against the recipe
    find the newest undamaged checkpoint
    load the NF4 base with adapters, memory-map the rows
    train, from that checkpoint where there is one
    publish the adapter, or a marker when the run was asked to end early

`pressroom train` and `pressroom run` start it on this machine.
"""

if __name__ == "__main__":
    from train import rank_log

    rank_log.begin()  # before torch, whose import can fail too

    from pressroom.nn.lean_import import import_bitsandbytes

    import_bitsandbytes()  # before peft does

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from pressroom import dataset, quantized_base, seal
from pressroom.base_model import model_fingerprint, model_folder
from pressroom.console import UserError, entry, log, redact
from pressroom.files import publish_json, publish_text, replace_folder
from pressroom.geometry import Geometry
from pressroom.locks import is_locked, lock
from pressroom.planner.choice import Gpus
from pressroom.planner.setup import Setup
from pressroom.recipe import Recipe
from pressroom.report.page import try_publish
from pressroom.run_dir import RunDir
from pressroom.spec import spec_of
from pressroom.tokenizer import ArticleTokenizer
from train import checkpoint, data, preflight, summary, trainer
from train import model as model_builder
from train.checkpoint import Checkpoint
from train.divided import Divided
from train.environment import environment
from train.meter import Meter
from train.preempt import Preemption
from train.roll_call import RollCall
from train.speed import attention_here


@click.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.argument("overrides", nargs=-1)
@click.option("--run", "run_path", help="The run directory; a new one when not given.")
@click.option("--dataset", "dataset_path", help="The dataset's folder; looked up when not given.")
def main(
    recipe_name: str, overrides: tuple[str, ...], run_path: str | None, dataset_path: str | None
) -> None:
    """Fine-tune; started on every rank by accelerate."""
    fine_tune(Recipe.load(recipe_name, overrides), run_path, dataset_path)
    if torch.distributed.is_initialized():
        # Threads of a group that is left can abort a rank whose work is done, and fail its job.
        torch.distributed.destroy_process_group()


def fine_tune(recipe: Recipe, run_path: str | None, dataset_path: str | None) -> RunDir:
    """Train a recipe's adapter; every rank calls it.

    Args:
        recipe: What to train.
        run_path: The run directory, or None for a new one.
        dataset_path: The dataset's folder, or None to look it up.

    Returns:
        The run, its adapter published; or, when the run was asked to end early, its marker.

    Raises:
        UserError: The dataset is missing, damaged, or not the recipe's; or the ranks are not
            what the recipe, or the newest checkpoint, needs.
    """
    preemption = Preemption()
    with preemption.listening():
        return _fine_tune(recipe, run_path, dataset_path, preemption)


def _fine_tune(
    recipe: Recipe, run_path: str | None, dataset_path: str | None, preemption: Preemption
) -> RunDir:
    with _refusal_kept(run_path):
        roll_call = RollCall.of_launcher()
        roll_call.meet(preflight.blind())
        with roll_call.connecting():
            ranks = PartialState(cpu=not torch.cuda.is_available())
            preemption.join(ranks)
        folder = model_folder(recipe.model)
        geometry = Geometry.of(folder)
        recipe.require_fit(geometry)
        gpus = summary.gpus_of_ranks(ranks)
        recipe = summary.settle(recipe, geometry, gpus, is_main=ranks.is_main_process)
        attention_here(recipe, geometry.head_dim, ranks.device)  # before the base is loaded
        foretold = summary.predicted(recipe, geometry, gpus)
        preflight.check(roll_call, ranks, foretold, gpus, run_path)
    spec = spec_of(recipe, ArticleTokenizer(folder).fingerprint)
    rows_folder = Path(dataset_path) if dataset_path else dataset.find(recipe, spec)
    manifest = dataset.check(rows_folder, spec)
    if ranks.is_main_process:
        seal.require_whole(rows_folder, manifest)
    run = _agree_on_run(recipe, run_path, ranks)
    try:
        with _held_by_all(run, ranks), _error_kept(run, ranks):
            _train(recipe, run, folder, rows_folder, geometry, gpus, ranks, preemption)
    finally:
        if ranks.is_main_process:
            try_publish(run)
    return run


@contextmanager
def _refusal_kept(run_path: str | None) -> Iterator[None]:
    """Write down why a run did not start, unless another launch trains it."""
    try:
        yield
    except UserError as error:
        run = RunDir(Path(run_path)) if run_path else None
        if run and run.path.is_dir() and not is_locked(run.lock):
            with suppress(OSError):
                publish_text(run.error, redact(str(error)) + "\n")
        raise


@contextmanager
def _error_kept(run: RunDir, ranks: PartialState) -> Iterator[None]:
    """Write down what ended a run, in the words of the first rank that says it."""
    if ranks.is_main_process:
        run.error.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        with suppress(OSError), run.error.open("x", encoding="utf-8") as file:
            file.write(redact(str(error) or type(error).__name__) + "\n")
        raise


@contextmanager
def _held_by_all(run: RunDir, ranks: PartialState) -> Iterator[None]:
    """Hold the run's lock: rank 0 alone, then all ranks together, until the last has ended.

    Raises:
        UserError: Another launch trains here, or a rank of it has not ended yet.
    """
    with ExitStack() as held:
        if ranks.is_main_process:
            let_others = held.enter_context(lock(run.lock, str(run.path)))
            let_others()
        ranks.wait_for_everyone()
        if not ranks.is_main_process:
            held.enter_context(lock(run.lock, str(run.path), shared=True))
        yield


def _train(
    recipe: Recipe,
    run: RunDir,
    folder: Path,
    rows_folder: Path,
    geometry: Geometry,
    gpus: Gpus,
    ranks: PartialState,
    preemption: Preemption,
) -> None:
    if ranks.is_main_process:
        log.info("%s, on %s", run.path, rows_folder)
        log.info(recipe.batch.arithmetic(ranks.num_processes, recipe.sequence_length))

    marks = summary.marks(run, gpus, ranks)
    resume, lowest = _agree_on_start(recipe, run, ranks)
    with preemption.ends_loading(run, resume.manifest.step if resume else 0):
        rows = {split: data.load_rows(rows_folder, split) for split in dataset.SPLITS}
        arguments = trainer.training_arguments(recipe, run, ranks.num_processes, len(rows["train"]))
        model = model_builder.build(recipe, folder, ranks.device)
        meter = Meter(run, recipe, geometry, gpus, marks)
        fine_tuning = trainer.build(recipe, run, arguments, model, folder, rows, meter, preemption)
        if ranks.num_processes > 1 and recipe.parallel.strategy.startswith(("fsdp", "zero3")):
            setup = Setup.of(recipe, geometry, gpus.kind, gpus.nodes, gpus.gpus_per_node)
            fine_tuning.add_callback(Divided(setup))
    if ranks.is_main_process:
        facts = environment(fine_tuning.accelerator)
        base = {"base": str(folder), "base_fingerprint": model_fingerprint(folder)}
        codes = quantized_base.find(folder, recipe.quantization, recipe.memory.precision)
        inputs = {"quantized_base": str(codes) if codes else None, "dataset": str(rows_folder)}
        publish_json(run.environment, {**base, **inputs, **facts})
    fine_tuning.go_on_from(resume, lowest)
    if preemption.agreed():
        preemption.mark(run, fine_tuning.state.global_step)
        marks.mark("end", fine_tuning.state.global_step)
        return
    summary.write(run, summary.predicted(recipe, geometry, gpus), meter, ranks)
    partial = checkpoint.scratch(run) / "adapter"
    with checkpoint.writing(run, "the adapter"):
        fine_tuning.save_model(str(partial))  # all ranks gather, rank 0 writes
        if ranks.is_main_process:
            replace_folder(partial, run.adapter)
            log.info("adapter: %s", run.adapter)
    ranks.wait_for_everyone()
    for what in ("save", "end"):
        marks.mark(what, fine_tuning.state.global_step)


def _agree_on_start(
    recipe: Recipe, run: RunDir, ranks: PartialState
) -> tuple[Checkpoint | None, float]:
    """What to go on from, and the lowest held-out loss so far; rank 0 looks, and clears up.

    Raises:
        UserError: These ranks cannot go on from it.
    """
    found: list[Any] = [None, math.inf]
    if ranks.is_main_process:
        run.preempted.unlink(missing_ok=True)
        checkpoint.clear(run)
        resume = checkpoint.newest(run)
        best = checkpoint.best(checkpoint.readable(run))
        if resume:
            checkpoint.require_ranks(resume, recipe.parallel.strategy, ranks.num_processes)
            log.info("going on from %s", resume.path)
        found = [resume, best.manifest.eval_loss if best else math.inf]
    broadcast_object_list(found)
    return found[0], found[1]


def _agree_on_run(recipe: Recipe, run_path: str | None, ranks: PartialState) -> RunDir:
    """Rank 0 makes a new run directory, if none is given, and tells the others."""
    if run_path:
        return RunDir(Path(run_path))
    path = [str(RunDir.create(recipe).path) if ranks.is_main_process else None]
    broadcast_object_list(path)
    return RunDir(Path(str(path[0])))


if __name__ == "__main__":
    entry(main)
