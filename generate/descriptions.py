"""The texts that an evaluation judges: descriptions of held-out titles, or a file of texts."""

import json
from pathlib import Path
from typing import Any

from generate.asked import Asked
from generate.origin import Origin
from generate.output import into_file
from generate.texts_file import OtherTexts
from generate.voice import Voice
from generate.written import Text, judge
from pressroom.console import UserError
from pressroom.prompts import FORMATS
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.samples import Sampling, Style, held_out_articles

_SHOWN = 5
"""Problems of a file that are told."""


def judged(run: RunDir, recipe: Recipe, file: Path | None = None) -> dict[str, Any]:
    """Texts beside the real descriptions of the same titles; beside all where there are none.

    Args:
        run: Whose training articles are looked through.
        recipe: Its own.
        file: Of other texts; None: what the run writes itself.

    Raises:
        UserError: Something cannot be read, or is damaged.
    """
    texts = read(file) if file else write(run, recipe)
    known = {text.id for text in texts}
    real = real_texts(run.dataset, Style.of(recipe))
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

    Those that are there are not written again, unless they would be others now.

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
    size = recipe.evaluation.micro_batch_size
    try:
        into_file(voice, titles, how, run.descriptions, size)
    except OtherTexts:
        run.descriptions.unlink()
        into_file(voice, titles, how, run.descriptions, size)
    wanted = {one.id for one in titles}
    return [text for text in read(run.descriptions) if text.id in wanted]


def read(path: Path) -> list[Text]:
    """Texts of a file as `pressroom generate --out` writes it, or another with `continuation`.

    Raises:
        UserError: It cannot be read, or has none; with every line that is wrong.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"--texts {path}: {error.strerror}") from None
    texts, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                texts.append(_text(number, json.loads(line)))
            except ValueError as error:
                problems.append(f"--texts {path}:{number}: {error}")
    if not texts and not problems:
        problems.append(f"--texts {path}: has no text in it")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more lines"] if len(problems) > _SHOWN else []
        raise UserError("\n".join(problems[:_SHOWN] + more))
    return texts


def _text(number: int, row: object) -> Text:
    """One line.

    Raises:
        ValueError: It is no text.
    """
    if not isinstance(row, dict) or not isinstance(row.get("continuation"), str):
        raise ValueError('no text: must be like {"continuation": "..."}, and may have more')
    ended, title = row.get("ended"), row.get("title")
    return Text(
        id=str(row.get("id", number)),
        prompt=str(row.get("prompt", "")),
        words=row["continuation"],
        ended=ended if isinstance(ended, bool) else None,
        title=title if isinstance(title, str) else None,
    )
