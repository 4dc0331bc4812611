"""The demo's own judge: it passes what it must, and fails what misses."""

import json
from pathlib import Path

import pytest

from demo import check
from demo.inputs import articles_jsonl
from pressroom.files import publish_json
from pressroom.run_dir import RunDir

GOOD = {
    "trained": 0.3,
    "description": 0.7,
    "off": True,
    "fp32": 8e-6,
    "ended": 40,
}


def finished(path: Path, **figures: object) -> RunDir:
    """A run directory with given figures."""
    found = {**GOOD, **figures}
    run = RunDir(path)
    base = {"trained": 100.0, "description": 100.0}
    tuned = {name: 100.0 * float(str(found[name])) for name in base}
    evaluation = {
        "perplexity": {"base": base, "tuned": tuned},
        "adapter_off_is_base_bitwise": found["off"],
        "written": {"texts": 50, "ended": found["ended"]},
    }
    publish_json(run.evaluation, evaluation)
    differences = {"mean_logit_difference": found["fp32"]}
    publish_json(run.merge_report, {"fp32": differences, "bf16": {"mean_logit_difference": 0.1}})
    return run


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({}, []),
        ({"trained": 0.41}, ["perplexity, trained tokens"]),
        ({"description": 0.81}, ["perplexity, description"]),
        ({"off": False}, ["adapter off = NF4 base"]),
        ({"fp32": 1.1e-4}, ["fp32 merge, mean logit difference"]),
        ({"ended": 39}, ["held-out titles that end by eos"]),
    ],
)
def test_each_missed_figure_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: dict, missed: list[str]
) -> None:
    run = finished(tmp_path, **figures)
    monkeypatch.setattr(check, "loads", lambda run: check.Figure("loads", "", "", True))
    rows = check.figures(run)
    assert [row.what for row in rows if not row.ok] == missed
    assert ("MISS" in check.table(rows)) == bool(missed)


def test_a_missed_figure_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "demo_run", lambda: finished(tmp_path, trained=0.9))
    monkeypatch.setattr(check, "loads", lambda run: check.Figure("loads", "", "", True))
    monkeypatch.setattr(check, "made", lambda run: {})
    with pytest.raises(SystemExit) as caught:
        check.main()
    assert caught.value.code == 1
    assert "MISS  perplexity, trained tokens" in capsys.readouterr().out


def test_articles_keep_their_fields(tmp_path: Path) -> None:
    import zipfile

    rows = "article_id,publish_date,article_source_link,title,subtitle,text\n1,2017/2/7,http://www.x.example/1,A,B,C\n"
    with zipfile.ZipFile(tmp_path / "n.zip", "w") as archive:
        archive.writestr("NewsArticles.csv", rows)
    assert json.loads(articles_jsonl(tmp_path / "n.zip")) == {
        "title": "A",
        "description": "B",
        "url": "http://www.x.example/1",
        "published_at": "2017-02-07",
        "source": "x.example",
    }
