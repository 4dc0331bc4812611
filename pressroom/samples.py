"""What a model is asked to write: the recipe's prompts, and titles of held-out articles.

Knows nothing of models.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pressroom.files import readable
from pressroom.prompts import FORMATS
from pressroom.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """A text to be continued."""

    prompt: str
    title: str | None = None
    article_id: str | None = None
    reference: str | None = None
    """What the held-out article really says."""


def held_out_articles(dataset: Path) -> list[dict[str, str]]:
    """The held-out articles of a dataset's folder: id, title, description.

    Raises:
        UserError: They are damaged.
    """
    path = dataset / "held_out.jsonl"
    with readable(path, f"delete {dataset} and run `pressroom prep`"):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of_title(title: str, recipe: Recipe, **known: str) -> Request:
    """A title, rendered in the recipe's format up to where the description begins."""
    title = title.lower() if recipe.data.lower_case else title
    return Request(FORMATS[recipe.prompt.format].render_prompt(title), title, **known)


def recipe_requests(dataset: Path, recipe: Recipe) -> list[Request]:
    """The recipe's prompts, and the first held-out titles by article id."""
    articles = sorted(held_out_articles(dataset), key=lambda article: article["id"])
    return [
        *(Request(prompt) for prompt in recipe.generation.prompts),
        *(
            of_title(a["title"], recipe, article_id=a["id"], reference=a["description"])
            for a in articles[: recipe.generation.titles]
        ),
    ]
