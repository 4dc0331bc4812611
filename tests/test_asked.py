"""What a user asks to be written, and all that can be wrong with it."""

from pathlib import Path

import pytest

from generate import asked
from generate.origin import _of_card
from pressroom.console import UserError
from pressroom.samples import Style

NEWS = Style()


def file(folder: Path, content: str | bytes, name: str = "p.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_line_is_a_prompt_and_its_number_the_id(tmp_path: Path) -> None:
    text = "\ufeffcity!\r\n\n  two\u2028lines in one \n"
    found = asked.of_file(file(tmp_path, text), NEWS)
    assert [(one.id, one.prompt) for one in found] == [
        (1, "city!"),
        (3, "  two\u2028lines in one "),
    ]


def test_json_lines_have_prompts_or_titles_with_ids_or_without(tmp_path: Path) -> None:
    lines = (
        '{"prompt": "city!", "id": "a"}\n{"title": "Storm", "description": "not read"}\n'
        '{"id": 7, "title": "Mayor wins", "prompt": null}\n'
    )
    style = Style("plain", lower_case=True)
    found = asked.of_file(file(tmp_path, lines, "p.jsonl"), style)
    assert [(one.id, one.prompt, one.title) for one in found] == [
        ("a", "city!", None),
        (2, "storm", "storm"),
        (7, "mayor wins", "mayor wins"),
    ]
    assert asked.of_input(lines.encode(), style)[1:] != found  # they bear another name
    assert [one.id for one in asked.of_input(lines.encode(), style)] == ["a", 2, 7]
    assert asked.of_input(b"{not json\n", NEWS)[0].prompt == "{not json"


def test_titles_are_rendered_in_any_format() -> None:
    found = asked.of_arguments(["x"], ["Storm"], Style("vicuna"))
    assert [one.id for one in found] == [1, 2]
    assert found[0].prompt == "x"
    assert found[1].prompt.endswith("this title: Storm ASSISTANT:")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "", "p.txt: empty: a prompt a line is expected"),
        ("p.jsonl", "\n \n", "p.jsonl: empty"),
        ("p.txt", b"a\nb\xff\n\xfe\n", "p.txt:2: byte 2 is not UTF-8"),
        ("p.txt", b"a\nb\xff\n\xfe\n", "p.txt:3: byte 1 is not UTF-8"),
        ("p.csv", "a", "p.csv: must end in .txt or .jsonl"),
        ("p.jsonl", "{", "p.jsonl:1: not JSON"),
        ("p.jsonl", "[]\n3", "p.jsonl:2: not an object"),
        ("p.jsonl", '{"promt": "a"}', "p.jsonl:1: no prompt and no title; is promt one?"),
        ("p.jsonl", '{"prompt": "a", "title": "b"}', "has a prompt and a title"),
        ("p.jsonl", '{"prompt": 3}', "prompt: 3 is not text"),
        ("p.jsonl", '{"prompt": "a", "id": [1]}', "id: [1] is neither text nor"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "id": "1"}', "id 1 is that of"),
        ("p.txt", b"\xff\n" * 8, "and 3 more lines"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        asked.of_file(file(tmp_path, content, name), NEWS)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    file(tmp_path, "a", "prompts.txt")
    with pytest.raises(UserError, match=r"No such file or directory; did you mean .*prompts\.txt"):
        asked.of_file(tmp_path / "promts.txt", NEWS)
    with pytest.raises(UserError, match="--file"):
        asked.of_file(tmp_path / "none" / "promts.txt", NEWS)


def test_a_card_of_anybodys_is_no_harm(tmp_path: Path) -> None:
    head = "## Recipe\n\n```yaml\n"
    for text in ("", "# x", head, head + "- a\n```", head + "prompt: {format: mine}\n```"):
        assert _of_card(file(tmp_path, text, "README.md")) == NEWS
    assert _of_card(file(tmp_path, b"\xff", "README.md")) == NEWS
    assert _of_card(tmp_path / "none.md") == NEWS
