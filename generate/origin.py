"""What a user calls what writes: a run, an adapter or a model's folder; and what is known of it.

Knows nothing of weights: it answers before anything that takes seconds is imported.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from generate.merge_names import adapter_and_run, is_run
from pressroom.base_model import asks_for_code, require_safe
from pressroom.console import UserError
from pressroom.files import home
from pressroom.prompts import FORMATS
from pressroom.run_dir import RunDir
from pressroom.runs import find_run
from pressroom.samples import Style
from pressroom.sections import Generation
from pressroom.train_sections import Dtype


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model's folder, or an adapter to put on its base."""

    model: Path | None = None
    adapter: Path | None = None
    run: RunDir | None = None
    """Theirs, where they are a run's."""
    base: str | None = None
    """Of an adapter without a run: in place of the base that it names."""
    quantized: bool = True
    """Of an adapter without a run: whether its base is read in 4 bits."""
    dtype: Dtype | None = None
    """Computed in; None: as trained."""

    @property
    def style(self) -> Style:
        """How titles were rendered in training; the default where nobody knows."""
        if self.run:
            return Style.of(self.run.load_recipe())
        return _of_card(self.model / "README.md") if self.model else Style()

    @property
    def generation(self) -> Generation:
        """What the recipe says where the user does not."""
        return self.run.load_recipe().generation if self.run else Generation()


def named(what: str) -> Origin:
    """What the user means.

    Raises:
        UserError: There is no such thing, it is not whole, or it asks for code of its own.
    """
    for folder in (Path(what), home() / what):
        if (folder / "adapter_config.json").is_file():
            adapter, run = adapter_and_run(what)
            if wrong := asks_for_code(adapter):
                raise UserError(f"{adapter}: {wrong}")
            return Origin(adapter=adapter, run=run)
        if (folder / "config.json").is_file():
            require_safe(folder)
            run = RunDir(folder.absolute().parent)
            return Origin(model=folder, run=run if is_run(run) else None)
        if folder.is_dir() and any(folder.glob("*.safetensors")):
            raise UserError(f"{folder}: has no config.json, and no adapter_config.json")
    run = find_run(what, trained=True)
    if not run.merged.is_dir():
        return Origin(adapter=run.adapter, run=run)
    require_safe(run.merged)
    return Origin(model=run.merged, run=run)


def _of_card(card: Path) -> Style:
    """The style of the recipe that a merged model's card holds."""
    with suppress(OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        found = re.search(r"^## Recipe\n+```yaml\n(.*?)^```", card.read_text("utf-8"), re.S | re.M)
        recipe: dict[str, Any] = yaml.safe_load(found[1]) if found else {}
        if recipe["prompt"]["format"] in FORMATS:
            return Style(recipe["prompt"]["format"], recipe["data"]["lower_case"] is True)
    return Style()
