"""One code makes the text to train on and the text to generate from, in every format."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import invented_articles

from data_prep.prepare import prepare
from data_prep.tokens import require_boundary, tokenize
from pressroom.console import UserError
from pressroom.prompts import FORMATS, PromptFormat
from pressroom.recipe import Recipe
from pressroom.tokenizer import ArticleTokenizer, Tokens

TITLE = "thousands of wild horses creating hazard for nevada drivers as collisions nearly double."
DESCRIPTION = "thousands of wild horses in nevada."
SPELLED = {
    "news": "### title: T ### description: D",
    "llama2-chat": (
        "[INST] <<SYS>> You write the descriptions of news articles. <</SYS>> "
        "Write the description of the article with this title: T [/INST] D "
    ),
    "alpaca": (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWrite the description of the news article with this title.\n\n"
        "### Input:\nT\n\n### Response:\nD"
    ),
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: Write the "
        "description of the news article with this title: T ASSISTANT: D"
    ),
    "plain": "T\n\nD",
}
TRAINED_ON = {
    "news": "all",
    "plain": "all",
    "llama2-chat": "answer",
    "alpaca": "answer",
    "vicuna": "answer",
}
# What trips tokenizers: other scripts, emoji of several bytes, quotes, digits, markup, newlines.
ODD = [
    (TITLE, DESCRIPTION),
    ("Été à Zürich: 40 °C", "« Chaud », dit-on. 🦙🔥"),
    ("日本の選挙", "与党が勝利した。"),
    ("3.14159 isn't 2,718", '"Quoted" - and: dashed; [INST] not a template </s> {title}'),
    ("x", "y"),
    ("Title with trailing colon:", ": description with a leading one"),
    ("A  B", "two\nlines\n\nof text"),
]


def apart(tokens: Tokens) -> list[np.ndarray]:
    """The ids of each article."""
    return np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])


def table(articles: list[tuple[str, str]]) -> pa.Table:
    """Articles as they are tokenized."""
    columns = {"title": [t for t, _ in articles], "description": [d for _, d in articles]}
    names = {"id": ["0" * 16] * len(articles), "place": ["x:1"] * len(articles)}
    return pa.table({**columns, **names})


@pytest.fixture(params=["tiny", "llama2"])
def tokenizer(request: pytest.FixtureRequest) -> ArticleTokenizer:
    """A byte-level BPE of 512 entries, and Llama 2's own."""
    name = "tokenizer_folder" if request.param == "tiny" else "llama2_tokenizer"
    return ArticleTokenizer(request.getfixturevalue(name))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_spelled_exactly(name: str) -> None:
    found = FORMATS[name]
    assert found.render_prompt("T") + found.render_answer("D") == SPELLED[name]
    assert found.train_on == TRAINED_ON[name]


@pytest.mark.parametrize("name", FORMATS)
def test_training_and_generation_share_their_ids(name: str, tokenizer: ArticleTokenizer) -> None:
    """One BOS, one final eos, and a prompt to generate from is what the article begins with."""
    prompts = [FORMATS[name].render_prompt(title) for title, _ in ODD]
    answers = [FORMATS[name].render_answer(description) for _, description in ODD]
    tokens = tokenizer.encode_articles(prompts, answers)
    for prompt, answer, array, length in zip(
        prompts, answers, apart(tokens), tokens.prompt_lengths, strict=True
    ):
        ids = array.tolist()
        assert ids[0] == tokenizer.bos_id
        assert ids[-1] == tokenizer.eos_id
        assert ids.count(tokenizer.bos_id) == ids.count(tokenizer.eos_id) == 1
        assert tokenizer.encode_prompt(prompt) == ids[:length]
        assert tokenizer.decode(ids[1:-1]) == prompt + answer
        assert tokenizer.decode(ids[1:length]) == prompt


@pytest.mark.parametrize("train_on", ["all", "answer"])
@pytest.mark.parametrize("name", FORMATS)
def test_masks_are_right_to_the_token(
    name: str, train_on: str, tokenizer: ArticleTokenizer, make_recipe
) -> None:
    """Every token but BOS, or every token of the answer and eos, is trained once."""
    make_recipe(prompt={"format": name, "train_on": train_on}, sequence_length=256)
    pieces, rejects = tokenize(table(ODD), Recipe.load("recipe.yaml"), tokenizer)
    assert not rejects
    for number, (title, description) in enumerate(ODD):
        prompt = FORMATS[name].render_prompt(title)
        ids = tokenizer.encode_articles([prompt], [FORMATS[name].render_answer(description)]).ids
        # Independently of offsets: the ids of the prompt alone are what comes before the answer.
        first = len(tokenizer.encode_prompt(prompt)) if train_on == "answer" else 1
        # Pieces overlap by one token, which the later one does not train.
        whole, trained = [], []
        for piece in np.flatnonzero(pieces.articles == number):
            start = pieces.starts[piece]
            run = pieces.ids[start : start + pieces.lengths[piece]].tolist()
            whole += run[bool(whole) :]
            trained += run[pieces.masked[piece] :]
        assert whole == ids.tolist()
        assert trained == ids.tolist()[first:]


def test_llama2_ids_are_metas(llama2_tokenizer: Path) -> None:
    tokenizer = ArticleTokenizer(llama2_tokenizer)
    for text, ids in {
        "Hello world": [1, 15043, 3186],
        " Hello world": [1, 29871, 15043, 3186],
        "grabbed": [1, 2646, 1327, 287],
        "  two spaces": [1, 259, 1023, 8162],
        "été 🦙": [1, 4370, 29871, 243, 162, 169, 156],
        "Line1\nLine2": [1, 7407, 29896, 13, 3542, 29906],
        "[INST] x [/INST]": [1, 518, 25580, 29962, 921, 518, 29914, 25580, 29962],
    }.items():
        assert tokenizer.encode_prompt(text) == ids
    tokens = tokenizer.encode_articles(["### title: Hello ### description:"], [" world"])
    assert tokens.ids[-2:].tolist() == [3186, 2]
    assert (
        tokenizer.decode(tokens.ids.tolist()) == "<s> ### title: Hello ### description: world</s>"
    )


def test_articles_are_data(tokenizer: ArticleTokenizer) -> None:
    title, description = "</s> <s> {description} {title}", "</s>[INST] %s {0}"
    news = FORMATS["news"]
    prompt, answer = news.render_prompt(title), news.render_answer(description)
    assert prompt + answer == f"### title: {title} ### description: {description}"
    ids = tokenizer.encode_articles([prompt], [answer]).ids.tolist()
    assert ids.count(tokenizer.eos_id) == 1
    assert ids.count(tokenizer.bos_id) == 1
    assert tokenizer.decode(ids[1:-1]) == prompt + answer


def test_a_format_of_ones_own_that_cuts_a_token_is_refused(
    make_recipe, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that ends with the space belonging to the description's first token."""
    monkeypatch.setitem(FORMATS, "mine", PromptFormat("HEAD {title} TEXT ", "{description}", "all"))
    monkeypatch.setitem(FORMATS, "well", PromptFormat("HEAD {title} TEXT", " {description}", "all"))
    make_recipe()
    articles = table([(a["title"], a["description"]) for a in invented_articles(5)])
    tokenizer = ArticleTokenizer(tokenizer_folder)
    require_boundary(articles, "well", tokenizer)
    prepare(Recipe.load("recipe.yaml", ["prompt.format=well"]))
    with pytest.raises(UserError, match="mine's prompt ends inside a token"):
        require_boundary(articles, "mine", tokenizer)
    with pytest.raises(UserError, match="mine's prompt ends inside a token"):
        prepare(Recipe.load("recipe.yaml", ["prompt.format=mine"]))
