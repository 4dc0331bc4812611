"""The sections of a recipe: what each field means, and which combinations it cannot have.

Here what a section is, and what goes in and comes out: model, articles, prompt, evaluation,
generation; `pressroom/train_sections.py` has how it is trained. Rules that compare two sections
stand in `pressroom/recipe.py`. Knows no torch.
"""

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pressroom import hub
from pressroom.columns import Columns
from pressroom.languages import NAMES, nearest
from pressroom.prompts import FORMATS, unknown_format

Problems = Iterator[tuple[str, str]]

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
Share = Annotated[float, Field(gt=0, lt=1)]
ShareOrEnd = Annotated[float, Field(ge=0, le=1)]
Likeness = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class Section:
    """A part of a config that knows its own impossible combinations."""

    def problems(self) -> Problems:
        """Yield (field, what is wrong) for each impossible combination."""
        yield from ()

    def __post_init__(self) -> None:
        found = list(self.problems())
        if found:
            text = "; ".join(f"{name}: {message}" for name, message in found)
            raise PydanticCustomError("rule", "{text}", {"text": text, "found": found})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Model(Section):
    """The pretrained model that is fine-tuned."""

    base: str
    """A local folder, or a hub id (`organisation/name`)."""
    revision: str = "main"
    """The commit or branch of a hub id; a local folder has none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Quality(Section):
    """What an article must be to be learnt from; few good ones do (Zhou et al. 2023, LIMA)."""

    languages: tuple[str, ...] = ()
    """Languages that are kept, as ISO 639-1 has them: `en`, `sv`; none named: all."""
    min_words: Annotated[int, Field(ge=0)] = 0
    """Of the description; a Chinese or Japanese character is a word."""
    max_words: Positive | None = None
    """Of the description; null: any number."""
    min_letters: ShareOrEnd = 0.0
    """Letters and spaces among the characters of the description."""
    max_capitals: ShareOrEnd = 1.0
    """Capitals among the letters of the title or of the description, whichever has more."""
    max_repetition: ShareOrEnd = 1.0
    """Words of the description in a run of 5 that came before; Gopher's 0.15 (Rae et al. 2021)."""
    whole_sentences: bool = False
    """Whether the description must end as a sentence does: feeds cut them off."""

    def problems(self) -> Problems:
        """Languages are ones that can be told apart; some number of words is allowed."""
        for code in self.languages:
            if code not in NAMES:
                near = nearest(code)
                hint = f"; did you mean {near} ({NAMES[near]})?" if near else ""
                yield "languages", f"{code!r} is no language that is known here{hint}"
        if self.max_words is not None and self.max_words < self.min_words:
            yield (
                "max_words",
                f"{self.max_words} is below min_words, {self.min_words}: none is kept",
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data(Section):
    """The articles and how they are cleaned and divided."""

    articles: Annotated[tuple[str, ...], Field(min_length=1)]
    """JSONL, Parquet or Arrow files, globs, folders of `datasets`, `hub:ORG/NAME[@REV][/GLOB]`."""
    columns: Columns = Field(default_factory=Columns)
    lower_case: bool = False
    """Whether titles and descriptions are lower-cased."""
    held_out: Share | date = 0.05
    """The share of articles kept for evaluation, or the first day of publication kept."""
    fraction: Likeness = 1.0
    """The share of the articles to train on that is used, by their ids: a smaller share is a part
    of every larger one, and the held-out articles are the same."""
    overlong: Literal["split", "reject"] = "split"
    """What becomes of an article longer than a row."""
    quality: Quality = Field(default_factory=Quality)
    near_duplicate: Likeness | None = 0.8
    """Share of runs of words in common from which on the later article is rejected; null: none."""
    same_story: Likeness | None = 0.5
    """The same, from which on two articles are on one side of the split; null: none."""
    takedown: str = "data/takedown.txt"
    """A file of ids or URLs, one a line, of articles that are not used; it need not exist."""

    def problems(self) -> Problems:
        """Data sets of a hub are written as it writes them."""
        for entry in self.articles:
            if entry.startswith(hub.PREFIX):
                try:
                    hub.parse(entry)
                except ValueError as error:
                    yield "articles", f"{entry}: {error}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompt(Section):
    """How an article becomes text."""

    format: str = "news"
    """A name in `pressroom/prompts.py`: news, llama2-chat, alpaca, vicuna, plain."""
    train_on: Literal["all", "answer"] | None = None
    """What carries loss: all after BOS, or the description and eos. Null: the format's own."""

    def problems(self) -> Problems:
        """The format is known."""
        if wrong := unknown_format(self.format):
            yield "format", wrong

    @property
    def trains_on(self) -> Literal["all", "answer"]:
        """Which tokens carry loss, the format's own default applied."""
        return self.train_on or FORMATS[self.format].train_on


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluation(Section):
    """Loss on the held-out articles during training."""

    every_steps: Positive | None = None
    """Steps between two evaluations; null: none."""
    early_stopping: Positive | None = None
    """Training ends after so many evaluations in a row without a new lowest loss; null: never."""
    micro_batch_size: Positive = 8
    """Articles that are scored, and texts that are written, at a time after training."""
    titles: Annotated[int, Field(ge=0)] = 50
    """Held-out titles that get a description, to be compared with real ones; 0: none."""

    def problems(self) -> Problems:
        """What stops by evaluations has some."""
        if self.early_stopping and not self.every_steps:
            yield "early_stopping", "counts evaluations: give evaluation.every_steps too"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Generation(Section):
    """What the finished model writes, beside what the base writes."""

    prompts: tuple[str, ...] = ("city!",)
    """Texts that are continued as they stand."""
    titles: Annotated[int, Field(ge=0)] = 3
    """How many held-out titles get a description."""
    max_new_tokens: Positive = 128
    """Where a text that does not end by itself is cut."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 takes the likeliest token each time."""
