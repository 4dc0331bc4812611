"""The article store: append-only, none twice, whole after a kill; and its neighbours on disk."""

import errno
import json
import os
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.articles import read_articles
from data_prep.budget import Budget
from data_prep.feed import Request, Stopped
from data_prep.page_cache import PageCache
from data_prep.store import Lines, Store, open_store, to_bytes, to_line, url_id
from pressroom.console import UserError
from pressroom.identity import canonical_url

TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)
"""Any character that JSON can name, halves of surrogate pairs too."""
LINES = st.lists(
    st.fixed_dictionaries(
        {"title": TEXT, "url": st.sampled_from([f"http://a/{n}" for n in range(9)])}
    ),
    max_size=12,
)


def line(number: int, **other: Any) -> dict[str, Any]:
    return {"title": f"Story {number}", "description": "d", "url": f"http://a/{number}", **other}


def as_json_reads(value: Any) -> Any:
    """A value as JSON gives it back: two halves of a surrogate pair become one character."""
    return json.loads(json.dumps(value))


@settings(max_examples=60, deadline=None)
@given(pages=st.lists(LINES, max_size=4), cut=st.floats(0, 1), blank=st.booleans())
def test_a_store_that_was_cut_anywhere_ends_as_one_that_was_not(
    tmp_path_factory: pytest.TempPathFactory, pages: list[Any], cut: float, blank: bool
) -> None:
    folder = tmp_path_factory.mktemp("store")
    whole, broken = folder / "whole.jsonl", folder / "broken.jsonl"
    store = Lines(whole, url_id)
    new = [store.append(page) for page in pages]
    content = whole.read_bytes() if whole.exists() else b""
    first = {entry["url"]: entry for page in reversed(pages) for entry in reversed(page)}
    assert sum(map(sum, new)) == store.count == len(first)
    assert [json.loads(entry) for entry in content.split(b"\n")[:-1]] == [
        as_json_reads(entry)
        for page, flags in zip(pages, new, strict=True)
        for entry, is_new in zip(page, flags, strict=True)
        if is_new
    ]
    broken.write_bytes(content[: round(cut * len(content))])
    for _ in range(2):
        again = Lines(broken, url_id)
        for page in pages:
            again.append(page)
        assert broken.read_bytes() == content
        assert again.count == store.count


@given(TEXT, TEXT)
def test_a_line_is_one_line_of_utf8(title: str, source: str) -> None:
    written = to_bytes({"title": title, "source": source})
    assert written.count(b"\n") == 1
    assert written.endswith(b"\n")
    assert as_json_reads(written.decode()) == written.decode()
    assert json.loads(written) == as_json_reads({"title": title, "source": source})


def test_a_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(to_bytes(line(1)) + to_bytes(line(2)).rstrip())
    assert Lines(path, url_id).append([line(2), line(3)]) == [False, True]
    assert [entry["url"][-1] for entry in map(json.loads, path.open())] == list("123")


@pytest.mark.parametrize("tail", [b'{"title": "ha', b"\x00" * 100, b'{"a": "' + b"x" * 200_000])
def test_a_last_line_that_was_cut_goes(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.jsonl"
    whole = to_bytes(line(1)) + b"no JSON, somebody else's\n" + to_bytes(line(2))
    path.write_bytes(whole + tail)
    assert Lines(path, url_id).count == 3
    assert path.read_bytes() == whole


def test_a_full_disk_leaves_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    store = Lines(path, url_id)
    store.append([line(1)])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.append([line(2), line(3)])
    assert path.read_bytes() == before
    assert store.append([line(2), line(3)]) == [True, True]


def test_what_stands_in_a_store_is_what_preparation_reads(tmp_path: Path) -> None:
    path = tmp_path / "data" / "feed.jsonl"
    with open_store(path) as store:
        store.articles.append([line(1), line(2, url="https://www.a/1?utm_source=x#top"), line(3)])
        store.rejects.append([{"page": "p", "row": 0, "cause": "no url", "detail": ""}])
        with pytest.raises(UserError, match=f"at it: process {os.getpid()} on"), open_store(path):
            pass
    articles = list(read_articles(path, "feed", lower_case=False))
    assert [a.id for a in articles] == [url_id(line(1)), url_id(line(3))]
    assert sorted(p.name for p in path.parent.glob("*.jsonl")) == ["feed.jsonl"]
    assert Store(path).rejects.count == 1


HOSTS = st.from_regex(r"[a-z]{1,8}(\.[a-z]{2,5}){1,2}", fullmatch=True)
WORDS = st.text(string.ascii_letters + string.digits + "-._~é%&=+/ ", max_size=8)
QUERY = st.lists(
    st.tuples(WORDS.filter(str.strip), WORDS), max_size=4, unique_by=lambda pair: pair[0]
)
TRACKING = ("utm_source", "UTM_Medium", "fbclid", "gclid", "ref")


def url_of(scheme: str, host: str, path: str, query: list[tuple[str, str]]) -> str:
    asked = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in query)
    return f"{scheme}://{host}/{quote(path)}" + (f"?{asked}" if asked else "")


@given(host=HOSTS, path=WORDS, query=QUERY, data=st.data())
def test_visits_to_one_article_have_one_canonical_url(
    host: str, path: str, query: list[tuple[str, str]], data: st.DataObject
) -> None:
    query = [(k, v) for k, v in query if k.lower() not in TRACKING and not k.startswith("utm_")]
    one = canonical_url(url_of("https", host, path, query))
    tracked = [(data.draw(st.sampled_from(TRACKING)), data.draw(WORDS)) for _ in range(2)]
    visit = data.draw(st.permutations([*query, *tracked]))
    scheme, www = (
        data.draw(st.sampled_from(["http", "HTTPS"])),
        data.draw(st.sampled_from(["", "www."])),
    )
    url = url_of(scheme, www + host.upper() if not www else www + host, path, visit) + "#top"
    assert canonical_url(f" {url}\n") == one
    assert canonical_url(f"https://{one}") == one


@given(host=HOSTS, path=WORDS, query=QUERY, other=st.tuples(st.just("id"), st.integers().map(str)))
def test_another_parameter_is_another_article(
    host: str, path: str, query: list[tuple[str, str]], other: tuple[str, str]
) -> None:
    query = [(key, value) for key, value in query if key != "id"]
    url = url_of("https", host, path, query)
    assert canonical_url(url) != canonical_url(url_of("https", host, path, [*query, other]))


@given(st.text(st.characters(exclude_categories=[])) | TEXT.map("http://{}".format))
def test_any_text_as_url_is_an_article_or_a_reject(url: str) -> None:
    columns = {"title": "title", "url": "url", "description": "description"}
    made = to_line({"title": "t", "url": url}, columns)
    if isinstance(made, dict):
        assert len(url_id(made) or "") == 16
    else:
        assert made[0] in ("no url", "url is not one")


def test_a_budget_is_a_months(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 31, 23, 59, tzinfo=UTC)]
    budget = Budget(tmp_path, 2, lambda: now[0])
    budget.spend("a")
    budget.spend("b")
    with pytest.raises(Stopped, match="2 requests a month"):
        budget.spend("c")
    now[0] = datetime(2026, 2, 1, tzinfo=UTC)
    assert budget.left == 2
    budget.spend("d")
    assert Budget(tmp_path, 2, lambda: now[0]).left == 1
    assert (tmp_path / "2026-01.txt").read_text().splitlines()[1] == "2026-01-31T23:59:00Z b"


def test_a_request_that_was_half_counted_counts(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    (tmp_path / "2026-03.txt").write_bytes(b"2026-03-01T00:00:00Z a\n2026-03-0")
    budget = Budget(tmp_path, 3, lambda: now)
    assert budget.left == 1
    budget.spend("c")
    assert Budget(tmp_path, 3, lambda: now).left == 0


def test_a_budget_counts_before_it_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    budget = Budget(tmp_path, 3, lambda: datetime(2026, 3, 1, tzinfo=UTC))
    budget.spend("a")
    monkeypatch.setattr(
        os, "fsync", lambda _: synced.append((tmp_path / "2026-03.txt").read_bytes())
    )
    budget.spend("b")
    assert synced[-1].endswith(b" b\n")


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_damaged_page_is_asked_for_again(tmp_path: Path, harm: str) -> None:
    cache = PageCache(tmp_path)
    cache.put("abcd", b'{"data": []}' * 50)
    (path,) = tmp_path.rglob("*.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= harm == "flipped"
    path.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[harm])
    assert cache.get("abcd") is None
    cache.put("abcd", b"new")
    assert cache.get("abcd") == b"new"


def test_a_page_is_named_by_what_is_asked_for() -> None:
    here = Request("https://api.example/v1", {"a": 1, "b": 2}, "x")
    assert here.name == Request("http://api.example/v1", {"b": 2, "a": 1}, "y").name
    others = [
        Request("https://other.example/v1", {"a": 1, "b": 2}, "x"),
        Request("https://api.example/v1", {"a": 1}, "x"),
        Request("https://api.example/v1", {"a": 1, "b": 2}, "x", "2026-01-01"),
        Request("https://api.example/v1", {"a": 1, "b": 2}, "x", "2026-01-01", 1),
    ]
    assert len({here.name, *(other.name for other in others)}) == 5
