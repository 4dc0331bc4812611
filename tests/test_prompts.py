"""One code makes the text to train on and the text to generate from."""

from pathlib import Path

import pytest

from pressroom.prompts import FORMATS
from pressroom.tokenizer import ArticleTokenizer

TITLE = "thousands of wild horses creating hazard for nevada drivers as collisions nearly double."
DESCRIPTION = "thousands of wild horses in nevada."


def test_news_is_spelled_exactly() -> None:
    news = FORMATS["news"]
    assert news.render_prompt(TITLE) + news.render_answer(DESCRIPTION) == (
        f"### title: {TITLE} ### description: {DESCRIPTION}"
    )
    assert news.train_on == "all"


def test_llama2_chat_is_spelled_exactly() -> None:
    chat = FORMATS["llama2-chat"]
    assert chat.render_prompt("T") + chat.render_answer("D") == (
        "[INST] <<SYS>> You write the descriptions of news articles. <</SYS>> "
        "Write the description of the article with this title: T [/INST] D "
    )
    assert chat.train_on == "answer"


@pytest.mark.parametrize("name", FORMATS)
def test_one_bos_one_eos_and_the_prompt_generates_from_the_same_ids(
    name: str, tokenizer_folder: Path
) -> None:
    tokenizer = ArticleTokenizer(tokenizer_folder)
    prompt, answer = FORMATS[name].render_prompt(TITLE), FORMATS[name].render_answer(DESCRIPTION)
    (tokens,) = tokenizer.encode_articles([prompt], [answer])
    assert tokens.ids[0] == tokenizer.bos_id
    assert tokens.ids[-1] == tokenizer.eos_id
    assert tokens.ids.count(tokenizer.bos_id) == tokens.ids.count(tokenizer.eos_id) == 1
    assert tokenizer.encode_prompt(prompt) == tokens.ids[: tokens.prompt_length]
    assert tokenizer.decode(tokens.ids[tokens.prompt_length : -1]) == answer


def test_articles_are_data(tokenizer_folder: Path) -> None:
    tokenizer = ArticleTokenizer(tokenizer_folder)
    title, description = "</s> <s> {description} {title}", "</s>[INST] %s {0}"
    news = FORMATS["news"]
    prompt, answer = news.render_prompt(title), news.render_answer(description)
    assert prompt + answer == f"### title: {title} ### description: {description}"
    (tokens,) = tokenizer.encode_articles([prompt], [answer])
    assert tokens.ids.count(tokenizer.eos_id) == 1
    assert tokens.ids.count(tokenizer.bos_id) == 1
    assert tokenizer.decode(tokens.ids[1:-1]) == prompt + answer
