"""The whole chain on this machine: `pressroom run RECIPE`.

    prep -> train -> evaluate -> merge -> generate

A stage's key hashes the recipe sections that it reads and the keys of its inputs. A stage whose
output bears the same key is skipped; a training whose key is new gets a new run directory, one
that was killed goes on in its own. Each stage runs as `python -m ROOM.MODULE`: knows none of
their insides.
"""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from launch.local import count_cpus, num_ranks, run_to_end, train_command
from pressroom import dataset
from pressroom.base_model import bytes_to_download, model_fingerprint, model_folder
from pressroom.console import UserError, entry, human_seconds, log, redact, say
from pressroom.files import is_locked, publish_text, require_home, sha256_json, sizes
from pressroom.geometry import Geometry
from pressroom.gpus import count_gpus
from pressroom.planner.here import settle
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.runs import runs_of
from pressroom.tokenizer import ArticleTokenizer

STAGES = ("prep", "train", "evaluate", "merge", "generate")


_dry_run = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done.")


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", nargs=-1)
@_dry_run
def main(recipe: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Prepare, train, evaluate, merge and generate; what is done is skipped."""
    _start(Recipe.load(recipe, overrides), STAGES, dry_run)


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", nargs=-1)
@_dry_run
def train(recipe: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Fine-tune on this machine's GPUs, or its CPU; goes on where a killed run stopped."""
    _start(Recipe.load(recipe, overrides), ("prep", "train"), dry_run)


def _start(recipe: Recipe, stages: Sequence[str], dry_run: bool) -> None:
    recipe = settle(recipe)
    if dry_run:
        say(would_do(recipe, stages))
        return
    run = run_stages(recipe, stages)
    say(f"{'run':11}{run.path}")
    for name in stages[1:]:
        output = run.output(name)
        say(f"{output.stem:11}{output}")


@dataclass(frozen=True)
class Keys:
    """What each stage's output is made from."""

    dataset: Path
    train: str
    evaluate: str
    merge: str
    generate: str


def stage_keys(recipe: Recipe) -> Keys:
    """The keys of a recipe's stages, from its sections and the content of its inputs.

    Raises:
        UserError: The model or the articles are not there, it is no Llama, or does not fit.
    """
    require_home()
    folder = model_folder(recipe.model)
    recipe.require_fit(Geometry.of(folder))
    spec = dataset.spec_of(recipe, ArticleTokenizer(folder).fingerprint)
    data_key = dataset.dataset_key(spec, dataset.hash_articles(dataset.article_files(recipe)))
    plain = recipe.to_dict()
    sections = ("seed", "quantization", "lora", "batch", "optimizer", "parallel", "memory")
    read = {name: plain[name] for name in sections}
    if recipe.evaluation.early_stopping:  # else evaluating changes nothing
        read["evaluation"] = {k: plain["evaluation"][k] for k in ("every_steps", "early_stopping")}
    train = sha256_json(["train", data_key, model_fingerprint(folder), read])[:16]
    return Keys(
        dataset=dataset.dataset_folder(recipe.name, data_key),
        train=train,
        evaluate=sha256_json(["evaluate", train, plain["evaluation"]["micro_batch_size"]])[:16],
        merge=sha256_json(["merge", train])[:16],
        generate=sha256_json(["generate", train, plain["generation"]])[:16],
    )


def find_run(recipe: Recipe, keys: Keys) -> RunDir | None:
    """The newest run with the same training key, finished or not."""
    for run in runs_of(recipe.name):
        if run.stages.get("train", {}).get("key") == keys.train:
            return run
    return None


def would_do(recipe: Recipe, stages: Sequence[str]) -> str:
    """What `run_stages` would do, after all the checks that it makes before any work.

    A model that is not here is not brought: its size is said, and no more can be.

    Raises:
        UserError: As `run_stages`, before any work.
    """
    absent = bytes_to_download(recipe.model)
    if absent:
        recipe.require_fit(Geometry.of(model_folder(recipe.model, weights=False)))
        return (
            f"{'model':11}{recipe.model.base}: {absent / 2**30:.1f} GiB to download first; "
            "`pressroom download` brings them now"
        )
    keys = stage_keys(recipe)
    run = find_run(recipe, keys) or RunDir.fresh(recipe)
    command = _commands(recipe, run, keys)["train"]
    ranks = int(command[command.index("--num_processes") + 1])
    lines = [f"{'dataset':11}{keys.dataset}", f"{'run':11}{run.path}"]
    for number, name in enumerate(stages, start=1):
        why = to_do(run, keys, name)
        lines.append(f"[{number}/{len(stages)}] {name}: {why or 'done already'}")
        if name == "train" and why:
            lines.append(f"      {recipe.batch.arithmetic(ranks, recipe.sequence_length)}")
            lines.append(f"      {shlex.join(command)}")
    return "\n".join(lines)


def run_stages(recipe: Recipe, stages: Sequence[str]) -> RunDir:
    """Bring a recipe's stages up to date, in order.

    Returns:
        The run directory.

    Raises:
        UserError: A stage failed; those before it are kept.
    """
    keys = stage_keys(recipe)
    run = find_run(recipe, keys) or RunDir.fresh(recipe)
    commands = _commands(recipe, run, keys)  # fails where this machine cannot train the recipe
    if not run.path.is_dir():
        run.begin(recipe)
        run.record_stage("train", keys.train)
    for number, name in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {name}"
        why = to_do(run, keys, name)
        if why is None:
            log.info("%s: done already", title)
            continue
        log.info("%s: %s", title, why)
        run.write_recipe(recipe)  # the training sections are the same, by their key
        start = time.monotonic()
        with _told(run, name):
            run_to_end(name, commands[name], run.preempted if name == "train" else None)
            seconds = time.monotonic() - start
            if name != "prep":
                run.record_stage(name, getattr(keys, name), seconds)
        log.info("%s: %s", title, human_seconds(seconds))
    return run


@contextmanager
def _told(run: RunDir, name: str) -> Iterator[None]:
    """Have the run's page tell how a stage ended; of an error the stage's own words are better.

    A run that somebody else trains is theirs: being refused is no failure of it.
    """
    if not is_locked(run.lock):
        run.error.unlink(missing_ok=True)
    try:
        yield
    except UserError as error:
        if not (run.error.is_file() or is_locked(run.lock)):
            publish_text(run.error, redact(f"{name}: {error}") + "\n")
        raise
    finally:
        # It draws pictures, whose libraries nobody else here needs.
        from pressroom.report.page import try_publish

        try_publish(run)


def _commands(recipe: Recipe, run: RunDir, keys: Keys) -> dict[str, list[str]]:
    """The command of each stage, on this machine."""
    num_gpus = count_gpus()
    ranks = num_ranks(recipe, num_gpus) if num_gpus else 0
    module = (sys.executable, "-m")
    return {
        "prep": [*module, "data_prep.prepare", str(run.recipe)],
        "train": train_command(recipe, run, keys.dataset, num_gpus=ranks, num_cpus=count_cpus()),
        "evaluate": [*module, "generate.commands", "evaluate", str(run.path)],
        "merge": [*module, "generate.commands", "merge", str(run.path)],
        "generate": [*module, "generate.commands", "generate", str(run.path)],
    }


def to_do(run: RunDir, keys: Keys, name: str) -> str | None:
    """Why a stage has to be done; None when its output is there, whole, of the same key."""
    if name == "prep":
        return None if keys.dataset.is_dir() else "no dataset yet"
    stage = run.stages.get(name, {})
    if "finished" not in stage:
        return "goes on" if name == "train" and run.metrics.is_file() else "not done yet"
    if stage["key"] != getattr(keys, name):
        return "the recipe or an input has changed"
    found = sizes(run.output(name))
    damaged = [f for f, size in stage.get("files", {}).items() if found.get(f) != size]
    return f"missing or damaged: {', '.join(damaged)}" if damaged or not found else None


if __name__ == "__main__":
    entry(main)
