"""`pressroom evaluate`: losses by group with their errors, written texts beside real ones."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import invented_articles, recipe_text, write_jsonl
from training import train

from data_prep.prepare import prepare
from generate import commands, evaluate, given_texts, held_out, scores, written
from generate.evaluation_table import table
from generate.scores import NOT_SAID, Total
from generate.written import Text
from pressroom.console import UserError
from pressroom.files import lines_until
from pressroom.recipe import Recipe
from pressroom.report import page
from pressroom.run_dir import RunDir
from pressroom.runs import find_run
from pressroom.samples import held_out_articles
from pressroom.tokenizer import ArticleTokenizer

CATEGORIES = ("world", "sport", "", "world")


def said(*arguments: object) -> Result:
    return CliRunner().invoke(commands.main, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A home with a run on articles of which some say what they are about."""
    folder = tmp_path_factory.mktemp("trained")
    articles = [
        {**article, "category": CATEGORIES[number % 4], "source": f"paper {number % 30}"}
        for number, article in enumerate(invented_articles(80))
    ]
    write_jsonl(folder / "articles.jsonl", articles)
    data = {"articles": ["articles.jsonl"], "held_out": 0.4}
    (folder / "recipe.yaml").write_text(recipe_text(tiny_model, data=data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRESSROOM_HOME", str(folder))
        patch.chdir(folder)
        train("optimizer.num_steps=2", "evaluation.titles=3", "generation.max_new_tokens=5")
    return folder


@pytest.fixture
def run(trained: Path, home: Path) -> RunDir:
    """The same run in a home of the test's own."""
    shutil.copytree(trained, home, dirs_exist_ok=True)
    return find_run("tiny")


def test_groups_add_up_to_all(run: RunDir) -> None:
    result = evaluate.score(run, run.load_recipe())
    articles = held_out_articles(run.dataset)
    for name in ("category", "source"):
        rows = result["by"][name]
        assert sum(row["articles"] for row in rows) == len(articles) == result["articles"]
        assert sum(row["tokens"] for row in rows) == result["trained_tokens"]
        for model in ("base", "tuned"):
            mean = sum(row[model] * row["tokens"] for row in rows) / result["trained_tokens"]
            assert mean == pytest.approx(result["loss"][model]["trained"])
    assert {row["name"] for row in result["by"]["category"]} == {"world", "sport", NOT_SAID}
    assert len(result["by"]["source"]) == scores.MOST_GROUPS + 1
    assert result["by"]["source"][-1]["name"].startswith("(all others, ")
    for row in result["perplexity"].values():
        assert row["trained"] > 1
    assert result["perplexity"]["base"]["trained"] == math.exp(result["loss"]["base"]["trained"])


def test_a_groups_articles_are_its_own(run: RunDir) -> None:
    """The ids beside the tokens are those of the texts that the tokens are of."""
    tokenizer = ArticleTokenizer(run.dataset / "tokenizer")
    texts = {article["id"]: article["title"] for article in held_out_articles(run.dataset)}
    ids = held_out.article_ids(run.dataset)
    for article, tokens in zip(ids, held_out.tokens(run.dataset), strict=True):
        assert f"### title: {texts[article]} ###" in tokenizer.decode(tokens.ids)


def test_losses_of_known_groups() -> None:
    base = [Total(6.0, 2), Total(12.0, 3), Total(5.0, 1), Total(8.0, 4)]
    tuned = [Total(4.0, 2), Total(6.0, 3), Total(5.0, 1), Total(2.0, 4)]
    rows = scores.by_group(["a", "a", "b", "a"], ["1", "2", "3", "2"], base, tuned)
    assert [row["name"] for row in rows] == ["a", "b"]
    first, second = rows
    assert (first["articles"], first["tokens"]) == (2, 9)
    assert (first["base"], first["tuned"]) == (pytest.approx(26 / 9), pytest.approx(12 / 9))
    assert first["change"] == pytest.approx(-14 / 9)
    # Article 1: -2 on 2 tokens; article 2, two pieces: -12 on 7.
    apart = [-2 + 14 / 9 * 2, -12 + 14 / 9 * 7]
    assert first["error"] == pytest.approx(math.sqrt(sum(x * x for x in apart) * 2) / 9)
    assert second["error"] is None
    assert scores.by_group(["", ""], ["1", "2"], base[:2], tuned[:2]) == []


def test_the_error_is_that_of_resampled_articles() -> None:
    source = torch.Generator().manual_seed(3)
    tokens = torch.randint(5, 60, (200,), generator=source)
    change = torch.randn(200, generator=source) * 0.3 - 1
    base = [Total(0.0, int(t)) for t in tokens]
    tuned = [Total(float(c * t), int(t)) for c, t in zip(change, tokens, strict=True)]
    (row,) = scores.by_group(["a"] * 200, [str(i) for i in range(200)], base, tuned)
    means = []
    for _ in range(2000):
        drawn = torch.randint(0, 200, (200,), generator=source)
        means.append(float((change * tokens)[drawn].sum() / tokens[drawn].sum()))
    assert row["error"] == pytest.approx(torch.tensor(means).std().item(), rel=0.06)


def text(words: str, number: int = 0, **more: object) -> Text:
    return Text(id=number, prompt="### title: a ### description:", words=words, **more)


def test_distinct_shares_are_of_as_many_words() -> None:
    short, long = ["a b a b"], ["a b c d", "e f g h", "a b c d"]
    one, other = written.distinct_shares(short, long)
    assert one == [pytest.approx(2 / 4), pytest.approx(2 / 3), pytest.approx(2 / 2)]
    assert other == [1.0, 1.0, 1.0]  # of its first four words
    assert written.distinct_shares(long)[0][0] == pytest.approx(8 / 12)
    assert written.distinct_shares(["A a"])[0] == [0.5, 1.0, 0.0]


def test_a_run_is_judged_by_what_it_writes(run: RunDir) -> None:
    done = said("tiny")
    assert done.exit_code == 0, repr(done.exception)
    result = json.loads(run.evaluation.read_text())
    found = result["written"]
    rows = [json.loads(line) for line in run.descriptions.read_text().splitlines()]
    real = {article["id"]: article for article in held_out_articles(run.dataset)}
    assert [row["id"] for row in rows] == sorted(real)[:3]
    assert found["texts"] == 3
    assert found["ended"] == sum(row["ended"] for row in rows)
    lengths = [len(real[row["id"]]["description"].split()) for row in rows]
    assert found["words"]["real"] == lengths
    assert "what it writes: 3 texts, beside 3 real descriptions" in done.stdout
    assert "by category" in done.stdout
    assert table(result) in done.stdout + "\n"


def test_what_is_written_is_written_once(run: RunDir, monkeypatch, capsys) -> None:
    from generate.voice import Voice

    recipe = run.load_recipe()
    evaluate.evaluate(run, recipe)
    first = run.descriptions.read_text()
    more = Recipe.load(str(run.recipe), ["generation.max_new_tokens=4"])
    evaluate.evaluate(run, more)
    assert run.descriptions.read_text() != first
    monkeypatch.setattr(Voice, "load", lambda *_: pytest.fail("there is nothing to write"))
    evaluate.evaluate(run, more)
    run.descriptions.write_text("{}\n")
    with pytest.raises(pytest.fail.Exception):
        evaluate.evaluate(run, more)  # what is no text is written anew


def test_none_are_written_where_none_are_asked_for(run: RunDir) -> None:
    result = evaluate.evaluate(run, Recipe.load(str(run.recipe), ["evaluation.titles=0"]))
    assert "written" not in result
    assert not run.descriptions.exists()


def test_planted_copies_are_found(run: RunDir, home: Path) -> None:
    """Of 40 texts ten are of training articles; each is named with its article."""
    held = {article["id"]: article for article in held_out_articles(run.dataset)}
    from pressroom.identity import article_id

    planted, rows = {}, []
    for number, article in enumerate(invented_articles(80)):
        identity = article_id(article["url"], article["title"], article["description"])
        if identity not in held and len(article["description"].split()) > 25 and len(planted) < 10:
            planted[str(number)] = identity
            words = article["description"].split()
            row = {"id": number, "continuation": " " + " ".join(words[: len(words) * 2 // 3])}
            rows.append({**row, "prompt": "### title: New ### description:"})
    fresh = invented_articles(30, seed=77)
    rows += [
        {"id": f"fresh {n}", "continuation": " " + a["description"]} for n, a in enumerate(fresh)
    ]
    (home / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = said("tiny", "--texts", "texts.jsonl", "--json")
    assert done.exit_code == 0, repr(done.exception)
    found = json.loads(done.stdout)["written"]
    assert found["texts"] == 40
    assert found["ended"] is None
    assert found["near_copies"] == {"written": 10, "real": 0}
    copies = {row["id"]: row for row in found["likest"] if row["near_copy"]}
    assert {name: row["article"] for name, row in copies.items()} == planted
    for row in copies.values():
        assert row["longest"] == row["of_tokens"] == row["tokens"]
    shown = said("tiny", "--texts", "texts.jsonl").stdout
    assert f"from article {next(iter(copies.values()))['article']}" in shown
    assert not run.evaluation.exists()


def test_what_is_no_file_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    with pytest.raises(UserError, match=r"--texts t: No such file"):
        given_texts.read(path, "--texts t")
    path.with_name("text.jsonl").touch()
    with pytest.raises(UserError, match=r"did you mean .*text.jsonl"):
        given_texts.read(path, "--texts t")
    for content, *messages in (
        ("\n", "texts.jsonl: has no text in it"),
        (
            '{"continuation": "a"}\n{"text": 3}\nx\n',
            r"texts.jsonl:2: no text: must be like",
            r"texts.jsonl:3: not JSON: Expecting value",
        ),
        ('{"continuation": "\\ud800"}\n', "half of a surrogate pair"),
        ("[" * 100_000, "recursion"),
        ("x\n" * 9, "and 4 more lines"),
    ):
        path.write_text(content)
        with pytest.raises(UserError) as error:
            given_texts.read(path, f"--texts {path}")
        for message in messages:
            assert re.search(message, str(error.value))


def test_losses_stay_when_what_follows_fails(run: RunDir, monkeypatch) -> None:
    from generate import descriptions

    def fail(*_: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(descriptions, "write", fail)
    assert isinstance(said("tiny").exception, UserError)
    assert json.loads(run.evaluation.read_text())["perplexity"]["tuned"]


def test_where_every_title_fills_the_positions(run: RunDir, monkeypatch, caplog) -> None:
    from generate.voice import Voice

    monkeypatch.setattr(Voice, "positions", 3)
    result = evaluate.evaluate(run, run.load_recipe())
    assert "written" not in result
    assert "fills the model's positions" in caplog.text


def test_not_a_number_is_not_the_base() -> None:
    one, bad = torch.zeros(3), torch.tensor([0.0, float("nan"), 0.0])
    assert evaluate._require_base([one, one], [one, one]) == 0.0
    for without in ([bad, one], [one, bad]):
        with pytest.raises(UserError, match="is not the base"):
            evaluate._require_base([one, one], without)


def test_a_folder_of_a_run_is_not_the_run(run: RunDir) -> None:
    for folder, kind in ((run.merged, "a model"), (run.checkpoints / "step-000002", "an adapter")):
        if kind == "a model":
            folder.mkdir()
            (folder / "config.json").write_text("{}")
        done = said(folder)
        assert f"is {kind}, not a run" in str(done.exception)


def test_lines_of_other_kinds_are_in_texts(make_recipe, home: Path) -> None:
    """U+2028 and its like end a line for Python, not in JSON."""
    articles = [{**a, "source": "a\u2028b\x85 c"} for a in invented_articles(40)]
    folder = prepare(make_recipe(articles=articles))
    assert {article["source"] for article in held_out_articles(folder)} == {"a b c"}
    path = folder / "held_out.jsonl"
    path.write_text(path.read_text().replace("a b c", "a\u2028b"))
    assert {article["source"] for article in held_out_articles(folder)} == {"a\u2028b"}
    rows = [{"step": step, "text": "one\u2028two\x85"} for step in (1, 2, 3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (home / "samples.jsonl").write_text(text)
    assert lines_until(home / "samples.jsonl") == text
    assert lines_until(home / "samples.jsonl", 2).count("\n") == 2


def test_the_page_has_it(run: RunDir) -> None:
    said("tiny")
    shown = page.render(run)
    for heading in ("loss by category", "loss by source", "Written beside real", "Closest to a"):
        assert heading in shown, heading
    found = json.loads(run.evaluation.read_text())
    likest = {"id": "7", "title": "<b>A storm</b>", "near_copy": True, "of_tokens": 30}
    likest |= {
        "article": "0123456789abcdef",
        "tokens": 29,
        "longest": 29,
        "run": "words",
        "also": [],
    }
    found["written"]["likest"] = [likest]
    found["by"] = {}
    run.evaluation.write_text(json.dumps(found))
    shown = page.render(run)
    assert "&lt;b&gt;A storm" in shown
    assert "<td>29 of 30, 29 in a run</td>" in shown
    assert "loss by category" not in shown
    del found["written"]["shared"]
    run.evaluation.write_text(json.dumps(found))
    assert "evaluation.json: damaged (KeyError" in page.render(run)


def test_a_damaged_training_shard_is_not_looked_through(run: RunDir) -> None:
    shard = next((run.dataset / "train").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train/data-00000-of-00001.arrow: damaged"):
        written.judge(run.dataset, [text(" a storm")], [])


def test_texts_of_a_dataset_without_a_run(make_recipe) -> None:
    folder = prepare(make_recipe())
    found = written.judge(folder, [text("")], [text(" a b", 1)])
    assert found["words"] == {"written": [0], "real": [2]}
    assert found["shared"] == {"written": 0.0, "real": 0.0}
    assert found["distinct"] == {"written": [], "real": []}
    assert "0 (0, 0)" in table({"written": found})
