"""What a run writes for held-out titles, to be judged beside what stands there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from generate.asked import Asked
from generate.given_texts import read
from generate.origin import Origin
from generate.output import into_file
from generate.texts_file import OtherTexts
from generate.voice import Voice
from generate.written import Text, judge
from pressroom.console import log
from pressroom.prompts import FORMATS
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.samples import Sampling, Style, held_out_articles


def judged(run: RunDir, recipe: Recipe, texts: list[Text]) -> dict[str, Any]:
    """Texts beside the real descriptions of the same titles; beside all where there are none.

    Args:
        run: Whose training articles are looked through.
        recipe: Its own.
        texts: In the case of its articles, or in any where those are lower-cased.

    Raises:
        UserError: The dataset is damaged.
    """
    known = {text.id for text in texts}
    real = real_texts(run.dataset, Style.of(recipe))
    if recipe.data.lower_case:
        texts = [replace(text, words=text.words.lower()) for text in texts]
    return judge(run.dataset, texts, [text for text in real if text.id in known] or real)


def real_texts(dataset: Path, style: Style) -> list[Text]:
    """The held-out articles of a dataset, by id: which of them come first is chance."""
    answer = FORMATS[style.format].render_answer
    return [
        Text(
            id=article["id"],
            prompt=style.prompt(article["title"]),
            words=answer(article["description"]),
            title=style.title(article["title"]),
        )
        for article in sorted(held_out_articles(dataset), key=lambda article: article["id"])
    ]


def write(run: RunDir, recipe: Recipe) -> list[Text]:
    """Let a run's adapter on its base describe held-out titles, into the run's descriptions.jsonl.

    Those that are there are not written again, unless they would be others now. Of a title that
    fills the model's positions there is none.

    Raises:
        UserError: The model cannot be read.
    """
    voice = Voice(Origin(adapter=run.adapter, run=run))
    how = Sampling(
        max_new_tokens=recipe.generation.max_new_tokens, temperature=recipe.generation.temperature
    )
    titles = [
        Asked(text.id, text.prompt, f"held-out article {text.id}", text.title)
        for text in real_texts(run.dataset, Style.of(recipe))
        if len(voice.tokenizer.encode_prompt(text.prompt)) < voice.positions
    ][: recipe.evaluation.titles]
    if not titles:
        log.warning("every held-out title fills the model's positions: none is described")
        return []
    size = recipe.evaluation.micro_batch_size
    try:
        into_file(voice, titles, how, run.descriptions, size)
    except OtherTexts:
        run.descriptions.unlink()
        into_file(voice, titles, how, run.descriptions, size)
    wanted = {one.id for one in titles}
    return [text for text in read(run.descriptions, str(run.descriptions)) if text.id in wanted]
