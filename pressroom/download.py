"""Bring a model, or all that a recipe takes from a hub, here once: `pressroom download`.

For machines whose nodes have no network: run where there is one, on a disk that the nodes see.
Knows nothing of what is done with the files.
"""

from pathlib import Path

import click

from pressroom import hub, sources
from pressroom.base_model import is_hub_id, local_folder, model_folder
from pressroom.console import UserError, entry, log, say
from pressroom.recipe import Recipe
from pressroom.sections import Model


@click.command()
@click.argument("what", metavar="MODEL|RECIPE")
@click.argument("overrides", nargs=-1)
def main(what: str, overrides: tuple[str, ...]) -> None:
    """Bring a model (ORG/NAME[@REVISION]) or a recipe's model and hub data sets to this machine.

    Only JSON, safetensors and files of articles are taken: no code, no pickles. What is here
    already is not fetched again; a broken connection goes on where it stopped, a killed download
    with the files that it had not finished. A gated model needs its licence accepted on its page
    and HF_TOKEN in the environment.
    """
    model, articles = _wanted(what, overrides)
    is_local = local_folder(model.base).is_dir()
    problems = []
    lines = []
    try:
        folder = model_folder(model).absolute()
        lines.append(f"model     {folder}  {_gib(folder)}")
    except UserError as error:
        problems.append(str(error))
    for name in articles:
        try:
            lines += [f"articles  {path.absolute()}" for path in sources.find(name).values()]
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    say("\n".join(lines))
    if not is_local:
        log.info("for nodes without a network, write in the recipe or behind its name:")
        say(f"model.base={folder}")
    if articles:
        log.info("the data sets are found in the cache: set HF_HUB_OFFLINE=1 on such nodes")


def _wanted(what: str, overrides: tuple[str, ...]) -> tuple[Model, list[str]]:
    """The model, and the entries of `data.articles` that a hub has."""
    base, _, revision = what.partition("@")
    is_file = what.endswith((".yaml", ".yml")) or Path(what).is_file()
    if is_hub_id(base) and not is_file:
        if overrides:
            raise UserError(f"{overrides[0]}: a model has no keys: {what}@REVISION names another")
        return Model(base=base, revision=revision or "main"), []
    recipe = Recipe.load(what, overrides)
    return recipe.model, [a for a in recipe.data.articles if a.startswith(hub.PREFIX)]


def _gib(folder: Path) -> str:
    return f"{sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 2**30:.1f} GiB"


if __name__ == "__main__":
    entry(main)
