"""What a model is asked to write, and how: prompts, titles of articles, and how tokens are chosen.

Knows nothing of models.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pressroom.files import readable
from pressroom.prompts import FORMATS
from pressroom.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How each next token is chosen, and where a text ends that does not by itself."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Drawn from are the likeliest tokens that have this much probability together."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the text has already become less likely."""
    seed: int = 0

    def seed_of(self, key: str) -> int:
        """The seed of one text's own random numbers, by what the text is called."""
        digest = hashlib.sha256(f"{self.seed}\n{key}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1  # torch's are signed


@dataclass(frozen=True)
class Style:
    """How a title is rendered: as in the articles that were trained on."""

    format: str = "news"
    lower_case: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> "Style":
        """A recipe's."""
        return cls(recipe.prompt.format, recipe.data.lower_case)

    def title(self, title: str) -> str:
        """A title, as preparation writes it."""
        return title.lower() if self.lower_case else title

    def prompt(self, title: str) -> str:
        """The text up to where the title's description begins."""
        return FORMATS[self.format].render_prompt(self.title(title))


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
        # Not splitlines: it also cuts at characters that JSON strings may contain.
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def recipe_requests(dataset: Path, recipe: Recipe) -> list[Request]:
    """The recipe's prompts, and the first held-out titles by article id."""
    style = Style.of(recipe)
    articles = sorted(held_out_articles(dataset), key=lambda article: article["id"])
    return [
        *(Request(prompt) for prompt in recipe.generation.prompts),
        *(
            Request(style.prompt(a["title"]), style.title(a["title"]), a["id"], a["description"])
            for a in articles[: recipe.generation.titles]
        ),
    ]
