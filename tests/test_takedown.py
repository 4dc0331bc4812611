"""A takedown list: what a line may be, what is told of others; its content is in the key."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pressroom import dataset, takedown
from pressroom.console import UserError
from pressroom.identity import article_id
from pressroom.recipe import Recipe
from pressroom.spec import spec_of

URL = "https://www.news.example/0/3?utm_source=x"
ID = article_id("http://news.example/0/3", "", "")


def listed(home: Path, text: str | bytes, name: str = "data/takedown.txt") -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("\n  \n# nothing yet\n", set()),
        (f"{ID}\n", {ID}),
        (f"  {ID.upper()}  # asked for on 2026-01-02\r\n{URL}\r\n", {ID}),
        (f"\ufeff{URL}", {ID}),
        (
            "https://news.example/a#top\nHTTPS://News.Example/b/ # why",
            {article_id("https://news.example/a", "", ""), article_id("news.example/b", "", "")},
        ),
    ],
)
def test_ids_and_urls(make_recipe, home: Path, text: str, expected: set[str]) -> None:
    recipe = make_recipe()
    assert takedown.ids(recipe) == frozenset()
    listed(home, text)
    assert takedown.ids(recipe) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (ID[:-1], "15 hex digits; an article's id has 16"),
        (ID + "0", "17 hex digits; an article's id has 16"),
        ("news.example/0/3", "a URL without its beginning: https://news.example/0/3"),
        ("www.news.example/", "a URL without its beginning: https://www.news.example/"),
        ("data/articles/mediastack.jsonl:12", "a line of a file; an article is named by its id"),
        ("Storm over the city", "text; an article is named by its id, 16 hex digits, or its URL"),
        (f"{URL}, {URL}", "a URL with a space in it: one article at a time"),
        ("https://[news.example/0/3", "Invalid IPv6 URL"),
        ("https://", "text; an article is named"),
        (f"{ID},legal", "text; an article is named"),
        ("\x1b[31mred", "'\\\\x1b[31mred': text"),
    ],
)
def test_a_line_that_names_no_article(make_recipe, home: Path, line: str, message: str) -> None:
    recipe = make_recipe()
    path = listed(home, f"# list\n{URL}\n{line}\n")
    with pytest.raises(UserError) as caught:
        takedown.ids(recipe)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message.replace("\\\\", "\\") in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_all_wrong_lines_are_told_at_once(make_recipe, home: Path) -> None:
    recipe = make_recipe()
    listed(home, "word\n" * 25)
    with pytest.raises(UserError) as caught:
        takedown.ids(recipe)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 5 more"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda home: listed(home, b"caf\xe9\n"), r"takedown.txt: .*cannot be read \(not UTF-8\)"),
        (lambda home: (home / "data/takedown.txt").mkdir(parents=True), "Is a directory"),
    ],
)
def test_a_list_that_is_none(
    make_recipe, home: Path, make: Callable[[Path], object], message: str
) -> None:
    recipe = make_recipe()
    make(home)
    with pytest.raises(UserError, match=message):
        takedown.ids(recipe)


def test_a_list_that_is_named_must_be_there(make_recipe, home: Path) -> None:
    make_recipe()
    named = Recipe.load("recipe.yaml", ["data.takedown=legal/list.txt"])
    with pytest.raises(UserError, match=r"data.takedown: .*legal/list.txt: no such file; an empty"):
        takedown.ids(named)
    listed(home, URL, "legal/list.txt")
    assert takedown.ids(named) == {ID}


def test_its_content_is_in_the_key_and_nothing_else_of_it(make_recipe, home: Path) -> None:
    recipe = make_recipe()

    def told(loaded: Recipe) -> str:
        return spec_of(loaded, "t")["data.takedown"]

    assert told(recipe) == "none"
    listed(home, "# empty\n")
    assert told(recipe) == "none"
    other = "0123456789abcdef"
    listed(home, f"{URL}\n{other}\n")
    both = told(recipe)
    assert both.startswith("2 (")
    listed(home, f"{other}\n# again\n{ID}\n{URL}\n", "elsewhere.txt")
    moved = Recipe.load("recipe.yaml", ["data.takedown=elsewhere.txt"])
    assert told(moved) == both
    listed(home, f"{URL}\n1123456789abcdef\n")
    assert told(recipe) not in (both, "none")


def test_every_id_of_a_list_counts() -> None:
    pairs = [frozenset(pair) for pair in (("a", "b"), ("a", "c"), ("b", "c"))]
    assert len({takedown.told(pair) for pair in pairs}) == 3


def test_a_list_that_grows_is_for_the_next_dataset(make_recipe, home: Path, caplog) -> None:
    from data_prep.prepare import prepare

    recipe = make_recipe()
    folder = prepare(recipe)
    tokenizer = dataset.Manifest.read(folder).spec["tokenizer"]
    listed(home, URL)
    spec = spec_of(recipe, tokenizer)
    dataset.check(folder, spec)  # a training that was preempted goes on
    assert "made when the takedown list was none; now it is 1 (" in caplog.text
    with pytest.raises(UserError, match="sequence_length: the dataset has 128, the recipe 64"):
        dataset.check(folder, spec | {"sequence_length": 64})
    with pytest.raises(UserError, match=r"no such dataset; .*\n.*\n.*data.takedown: the dataset"):
        dataset.find(recipe, spec)
