"""Prompt formats: one code that makes text to train on and text to generate from.

An article is a prompt, which is everything up to where its description begins, and an answer,
which is the rest. Token ids are `pressroom/tokenizer.py`'s business: BOS and eos are added there,
once. Articles are data: their text is never read as a template.

A format of your own is one more entry of `FORMATS`:

    "headline": PromptFormat(
        prompt="HEADLINE {title} STORY",   # ends where the description's first token begins
        answer=" {description}",           # so a space before it belongs here
        train_on="answer",
    ),
"""

import difflib
from dataclasses import dataclass
from typing import Literal

VERSION = 1
"""Raised whenever a format's text changes: datasets made before no longer match."""


@dataclass(frozen=True)
class PromptFormat:
    """How a title and a description become text.

    Between prompt and answer there has to be a boundary between tokens: let the answer begin with
    the space or the line break before the description. Preparation checks it on the articles.
    """

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


_TASK = "Write the description of the news article with this title"
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
    "alpaca": PromptFormat(
        prompt=(
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{_TASK}.\n\n### Input:\n{{title}}\n\n### Response:"
        ),
        answer="\n{description}",
        train_on="answer",
    ),
    "vicuna": PromptFormat(
        prompt=(
            "A chat between a curious user and an artificial intelligence assistant. The "
            "assistant gives helpful, detailed, and polite answers to the user's questions. "
            f"USER: {_TASK}: {{title}} ASSISTANT:"
        ),
        answer=" {description}",
        train_on="answer",
    ),
    "plain": PromptFormat(prompt="{title}", answer="\n\n{description}", train_on="all"),
}
"""By the name that a recipe gives.

Sources: Alpaca, github.com/tatsu-lab/stanford_alpaca, README, "Data Release"; Vicuna v1.1,
github.com/lm-sys/FastChat, docs/vicuna_weights_version.md.
"""


def unknown_format(name: str) -> str | None:
    """What is wrong with a format's name; None where nothing is."""
    if name in FORMATS:
        return None
    close = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name!r} is not one of {', '.join(FORMATS)}{hint}"
