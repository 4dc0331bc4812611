"""Prompt formats: one code that makes text to train on and text to generate from.

An article is a prompt, which is everything up to where its description begins, and an answer,
which is the rest. Token ids are `pressroom/tokenizer.py`'s business: BOS and eos are added there,
once. Articles are data: their text is never read as a template.
"""

from dataclasses import dataclass
from typing import Literal

VERSION = 1
"""Raised whenever a format's text changes: datasets made before no longer match."""


@dataclass(frozen=True)
class PromptFormat:
    """How a title and a description become text."""

    prompt: str
    """`{title}` stands for the title. Ends where the description's first token begins."""
    answer: str
    """`{description}` stands for the description."""
    train_on: Literal["all", "answer"]
    """Which tokens carry loss unless the recipe says otherwise."""

    def render_prompt(self, title: str) -> str:
        """The text up to where the description begins."""
        return self.prompt.replace("{title}", title)

    def render_answer(self, description: str) -> str:
        """The text from where the description begins; the tokenizer adds eos."""
        return self.answer.replace("{description}", description)


FORMATS = {
    "news": PromptFormat(
        prompt="### title: {title} ### description:",
        answer=" {description}",
        train_on="all",
    ),
    "llama2-chat": PromptFormat(
        prompt=(
            "[INST] <<SYS>> You write the descriptions of news articles. <</SYS>> "
            "Write the description of the article with this title: {title} [/INST]"
        ),
        answer=" {description} ",
        train_on="answer",
    ),
}
"""By the name that a recipe gives."""
