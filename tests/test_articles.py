"""Cleaning, reading and dividing articles: every line is an article or a listed reject."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import invented_articles, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from data_prep.articles import Article, Reject, nothing_good, read_articles
from data_prep.clean import preprocess_text
from pressroom import sources
from pressroom.console import UserError
from pressroom.identity import canonical_url


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a dash â€” here", "a dash — here"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("<p>One</p><p>Two</p>", "One Two"),
        ("<b>H</b>ello &lt;i&gt;you&lt;/i&gt;", "Hello you"),
        ("x<script>alert(1)</script>y", "xy"),
        ("5 < 6 & 7 > 2", "5 < 6 & 7 > 2"),
        ("  a\n\tb\u00a0c\u200bd ", "a b cd"),
        ("nul\x00and \ud800 lone", "nuland lone"),
        ("", ""),
        ("a \ud800 <b>x</b>", "a x"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("&amp;lt;script&amp;gt;no&amp;lt;/script&amp;gt; <p>x</p>", "x"),
        ("x<y and y>z", "x<y and y>z"),
        ("prices <a lot of text", "prices <a lot of text"),
        ("a<!-- no -->b <A HREF='x>y'>c</A>", "ab c"),
    ],
)
def test_preprocess_text(raw: str, clean: str) -> None:
    assert preprocess_text(raw) == clean


def test_lower_case() -> None:
    assert preprocess_text("ÉTÉ News", lower_case=True) == "été news"


@given(st.text(st.characters(exclude_categories=[])) | st.text("<>/&;ab! pltgm#\ud800"))
def test_cleaned_text_is_one_line_of_utf8(text: str) -> None:
    cleaned = preprocess_text(text)
    assert cleaned == " ".join(cleaned.split())
    cleaned.encode("utf-8")


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://www.a.example/x/?utm_source=rss&utm_medium=feed#top", "a.example/x"),
        ("http://A.example/x", "a.example/x"),
        ("https://a.example/story?id=2&fbclid=z", "a.example/story?id=2"),
        ("https://a.example/story?id=3", "a.example/story?id=3"),
        ("https://a.example/story?12345&utm_term=", "a.example/story?12345="),
    ],
)
def test_canonical_url(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical


def read(path: Path) -> list[Article | Reject]:
    return list(read_articles(path, path.name, lower_case=False))


def test_every_line_is_an_article_or_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"title": "T", "description": "D"}'
    path.write_bytes(
        b"\n".join(
            [
                good,
                b"",
                b"{not json",
                b'{"title": "T"}',
                b'{"title": " ", "description": "D"}',
                b'{"title": 5, "description": "D"}',
                b"[1]",
                b'{"title": "caf\xe9", "description": "D"}',
                b'{"title": null, "description": "D", "extra": {"x": 1}}',
                b'{"title": "T", "description": "D", "url": "http://[bad"}',
                b"[" * 100_000,
            ]
        )
    )
    items = read(path)
    assert [type(i).__name__ for i in items] == ["Article"] + ["Reject"] * 9
    assert [(i.place, i.cause) for i in items if isinstance(i, Reject)] == [
        ("a.jsonl:3", "not JSON"),
        ("a.jsonl:4", "no description"),
        ("a.jsonl:5", "no title"),
        ("a.jsonl:6", "title is not text"),
        ("a.jsonl:7", "not an object"),
        ("a.jsonl:8", "not UTF-8"),
        ("a.jsonl:9", "no title"),
        ("a.jsonl:10", "url is not one"),
        ("a.jsonl:11", "not JSON"),
    ]


def test_a_file_without_one_good_article_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("title,description\nT,D\n")
    first = read(path)[0]
    assert isinstance(first, Reject)
    told = nothing_good(first)
    assert told.startswith("a.jsonl: not one good article; a.jsonl:1: not JSON")


def test_a_byte_order_mark_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "T", "description": "D"}', encoding="utf-8-sig")
    assert isinstance(read(path)[0], Article)


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("title,description\nT,D\n")
    with pytest.raises(UserError, match=r"known: .jsonl, .ndjson, .parquet, .arrow; pandas makes"):
        sources.find(str(tmp_path / "a.csv"))


def test_parquet_reads_as_jsonl_does(tmp_path: Path) -> None:
    records = invented_articles(20)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", records)
    from_parquet, from_jsonl = read(tmp_path / "a.parquet"), read(tmp_path / "a.jsonl")
    assert [a.id for a in from_parquet] == [a.id for a in from_jsonl]
    assert all(isinstance(a, Article) for a in from_parquet)


def test_parquet_with_days_and_broken_text(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"ok\xff")
    )
    days = pa.array([datetime(2026, 1, 2), datetime(2026, 1, 3)], pa.timestamp("us"))
    columns = {"title": broken, "description": ["D", "D"], "published_at": days}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")
    assert isinstance(first, Article)
    assert first.published_at == "2026-01-02T00:00:00"
    assert isinstance(second, Reject)
    assert (second.place, second.cause) == ("a.parquet:2", "not UTF-8")


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(invented_articles(500)), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:1200] = b"\xff" * 1000
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a.parquet: damaged behind row"):
        read(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"no"), "a.parquet: not Parquet"),
        (
            lambda p: pq.write_table(pa.table({"headline": ["x"]}), p),
            "has no column title or description; it has headline",
        ),
    ],
)
def test_bad_parquet(tmp_path: Path, write, message: str) -> None:
    write(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.parquet")
