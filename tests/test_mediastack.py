"""What MediaStack may answer, and how each answer ends: every error, every broken page."""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from fetching import FEED, arguments_of, articles_of, assert_no_key, fetch, rejects_of, spent
from hypothesis import given
from hypothesis import strategies as st
from mediastack_server import KEY, STATUS, Answer, Server, article, error, serving

from data_prep import client
from data_prep.feed import Again, Page, Refused, Stopped
from data_prep.mediastack import MediaStack
from data_prep.store import to_bytes, to_line

REFUSED = {
    "invalid_access_key": "copy it anew",
    "missing_access_key": "copy it anew",
    "inactive_user": "the account is not active",
    "https_access_restricted": "--allow-http",
    "function_access_restricted": "need a paid one",
    "invalid_api_function": "--base-url",
    "404_not_found": "--base-url",
    "validation_error": "does not take a parameter",
}
PASSING = ("rate_limit_reached", "internal_error")
DAY = ("--from", "2026-01-01", "--to", "2026-01-01", "--limit", "2")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.articles = [article(n) for n in (5, 4, 3, 2, 1)]
        yield running


def test_the_documented_errors_are_all_here() -> None:
    assert set(STATUS) == {*REFUSED, *PASSING, "usage_limit_reached"}


def _typed(code: str) -> bytes:
    told = {"code": 104, "type": code, "info": f"This is {code}."}
    return json.dumps({"success": False, "error": told}).encode()


@pytest.mark.parametrize("form", ["documented", "status 200", "success and info", "type"])
@pytest.mark.parametrize("code", REFUSED)
def test_a_refusal_ends_at_once_with_what_to_do(
    server: Server, tmp_path: Path, code: str, form: str
) -> None:
    refusal = {
        "documented": error(code),
        "status 200": error(code, 200),
        "success and info": error(code, 200, message="info", success=False),
        "type": Answer(STATUS[code], _typed(code)),
    }[form]
    server.answers.extend([Answer(), refusal])
    done = fetch(server, tmp_path, *DAY)
    assert (done.code, len(server.asked)) == (2, 2)
    assert f"error: MediaStack: {code} (This is {code}.): " in done.err
    assert REFUSED[code] in done.err
    assert (done.count("new"), len(articles_of(tmp_path))) == (2, 2)


@pytest.mark.parametrize(("status", "hint"), [(401, "copy it anew"), (403, "paid"), (404, "base")])
def test_a_status_alone_is_understood(
    server: Server, tmp_path: Path, status: int, hint: str
) -> None:
    server.always = Answer(status, b"<html>no</html>")
    done = fetch(server, tmp_path, *DAY)
    assert (done.code, len(server.asked)) == (2, 1)
    assert hint in done.err


@pytest.mark.parametrize("status", [200, 429])
def test_a_used_up_plan_ends_and_keeps_what_came(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.answers.extend([Answer(), error("usage_limit_reached", status)])
    done = fetch(server, tmp_path, *DAY)
    assert (done.code, len(server.asked), len(articles_of(tmp_path))) == (1, 2, 2)
    assert "the plan's requests of this month are used up" in done.err
    assert "the same command goes on" in done.err
    assert fetch(server, tmp_path, *DAY).count("new") == 3


PASSES = {
    "rate limit": error("rate_limit_reached"),
    "rate limit, 200": error("rate_limit_reached", 200, message="info"),
    "internal": error("internal_error"),
    "429 bare": Answer(429, b""),
    "429 in seconds": Answer(429, b"", {"Retry-After": "0"}),
    "429 in nonsense": Answer(429, b"", {"Retry-After": "soon"}),
    "502": Answer(502, b"<html>"),
    "half": Answer(cut=60),
    "nothing": Answer(cut=0),
    "no JSON": Answer(body=b"<html>sign in</html>"),
    "no list": Answer(body=b'{"data": {"0": 1}}'),
    "unknown error": Answer(body=b'{"error": {"code": "new_one"}}'),
    "deep": Answer(body=b"[" * 200_000),
    "not UTF-8": Answer(body=b'{"data": ["\xff"]}'),
}


@pytest.mark.parametrize("kind", PASSES)
def test_what_passes_is_tried_again(server: Server, tmp_path: Path, kind: str) -> None:
    server.answers.extend([PASSES[kind]] * 2)
    done = fetch(server, tmp_path, *DAY)
    assert (done.code, len(articles_of(tmp_path))) == (0, 5)
    assert len(server.asked) == spent(tmp_path) == 5
    assert "attempt 3 in" in done.err


@pytest.mark.parametrize("kind", PASSES)
def test_what_does_not_pass_ends_so_that_it_goes_on(
    server: Server, tmp_path: Path, kind: str
) -> None:
    server.answers.extend([Answer(), *[PASSES[kind]] * 4])
    done = fetch(server, tmp_path, *DAY, "--attempts", "2")
    assert (done.code, len(articles_of(tmp_path))) == (1, 2)
    assert len(server.asked) == 3 if "set aside" not in done.out else 5
    assert fetch(server, tmp_path, *DAY).code == 0
    assert len(articles_of(tmp_path)) == 5


def test_a_broken_page_is_set_aside_and_the_next_is_read(server: Server, tmp_path: Path) -> None:
    broken = b'{"data": [ {"title": "' + KEY.encode()
    server.answers.extend([Answer(), *[Answer(body=broken)] * 2])
    done = fetch(server, tmp_path, *DAY, "--attempts", "2")
    assert (done.code, done.count("pages"), len(articles_of(tmp_path))) == (1, 2, 3)
    (path,) = (tmp_path / FEED / "set-aside").iterdir()
    assert f"set aside   {path}: not JSON" in done.out
    assert path.read_bytes() == b'2026-01-01: not JSON\n\n{"data": [ {"title": "<access_key>'
    assert fetch(server, tmp_path, *DAY).count("new") == 2
    assert not path.exists()


def test_half_an_answer_is_known_though_it_reads_as_a_whole_one(
    server: Server, tmp_path: Path
) -> None:
    body = json.dumps({"data": [article(9)]}).encode()
    server.answers.append(Answer(body=body + b" " * 9, cut=len(body)))
    done = fetch(server, tmp_path, *DAY)
    assert "half an answer; attempt 2" in done.err
    assert len(articles_of(tmp_path)) == 5


def test_two_broken_pages_in_a_row_end_a_fetch(server: Server, tmp_path: Path) -> None:
    bad, once = Answer(body=b"<html>"), (*DAY, "--attempts", "1")
    server.answers.extend([bad, Answer(), bad])
    apart = fetch(server, tmp_path, *once)
    assert (apart.code, apart.out.count("set aside")) == (1, 2)
    assert "some pages could not be read; the same command asks for them again" in apart.err
    server.answers.extend([bad, bad])  # the page between them is on the disk
    assert "stopped" not in fetch(server, tmp_path, *once).err
    (tmp_path / "other").mkdir()
    server.answers.extend([bad, bad])
    asked = len(server.asked)
    done = fetch(server, tmp_path / "other", *once)
    assert (done.code, len(server.asked) - asked) == (1, 2)
    assert "stopped: 2 pages in a row cannot be read (not JSON)" in done.err


def test_waits_that_the_feed_asks_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    for header in ("7", at, "-5", "9" * 5000):
        server.answers.append(Answer(429, b"", {"Retry-After": header}))
    fetch(server, tmp_path, *DAY)
    waits = [wait for wait in waits if wait > 0.5]
    assert waits[0] == 7
    assert 110 < waits[1] <= 120
    assert len(waits) == 2


def test_who_wants_to_be_left_alone_for_hours_is(server: Server, tmp_path: Path) -> None:
    server.answers.append(Answer(429, b"", {"Retry-After": "7200"}))
    done = fetch(server, tmp_path, *DAY)
    assert (done.code, len(server.asked)) == (1, 1)
    assert "it asks to be left alone for 2:00:00" in done.err


def test_waits_grow_with_jitter(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.always = Answer(500, b"")
    fetch(server, tmp_path, *DAY, "--pause", "4")
    backoff = [wait for wait in waits if wait >= 4][:4]
    assert [base <= wait <= base + 4 for base, wait in zip((4, 8, 16, 32), backoff, strict=True)]
    assert len({wait % 1 for wait in backoff}) == 4


def test_a_slow_answer_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers.extend([Answer(delay=0.5)])
    done = fetch(server, tmp_path, *DAY, "--timeout", "0.2")
    assert done.code == 0
    assert "no answer in time; attempt 2" in done.err


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    done = fetch(Server(url="http://127.0.0.1:9"), tmp_path, *DAY, "--attempts", "2")
    assert done.code == 1
    assert "no connection (ConnectionError), however often" in done.err
    assert spent(tmp_path) == 2


def test_the_key_goes_to_no_other_host(server: Server, tmp_path: Path) -> None:
    with serving() as other:
        there = {"Location": f"{other.url}/v1/news?access_key=1"}
        server.always = Answer(302, b"", there)
        done = fetch(server, tmp_path, *DAY)
        assert (done.code, len(other.asked)) == (2, 0)
        assert "will not get your key" in done.err


def test_no_library_logs_the_key(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers.extend([Answer(500, b""), Answer(cut=3), Answer(headers={"X-A: b\n c": "d"})])
    library = logging.getLogger("urllib3")
    with caplog.at_level(logging.DEBUG, "urllib3"):
        library.addHandler(caplog.handler)  # as a user's own, which redacts nothing
        fetch(server, tmp_path, *DAY)
        library.removeHandler(caplog.handler)
    assert "GET /v1/news?" in caplog.text
    assert "access_key=<access_key>" in caplog.text
    assert_no_key(tmp_path, caplog.text)


def test_exceptions_hold_no_url_with_the_key(tmp_path: Path) -> None:
    feed = MediaStack(
        key=KEY, today=datetime.now(UTC).date(), base_url="http://127.0.0.1:9", allow_http=True
    )
    budget = client.Budget(tmp_path, 9)
    pace = client.Pace(pause=0, attempts=2)
    with client.Client(feed, budget, pace) as asking, pytest.raises(Again) as caught:
        asking.ask(feed.parts()[0])
    seen: list[Any] = [caught.value]
    for one in seen:
        seen += [e for e in (one.__cause__, one.__context__) if e is not None]
    assert_no_key(tmp_path, repr(seen) + repr(feed))


@pytest.mark.skipif(
    not os.environ.get("CI") and not Path("/usr/bin/openssl").exists(), reason="needs openssl"
)
def test_https_needs_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    pem, home = tmp_path / "both.pem", tmp_path / "home"
    home.mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", pem, "-out", pem.with_suffix(".crt"), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    pem.write_bytes(pem.read_bytes() + pem.with_suffix(".crt").read_bytes())
    with serving(pem) as server:
        server.articles = [article(1)]
        assert "--allow-http" not in arguments_of(server, ())
        refused = fetch(server, home, *DAY)
        assert (refused.code, server.asked) == (2, [])
        assert "its certificate is not one that this machine trusts" in refused.err
        trusted = fetch(server, home, *DAY, REQUESTS_CA_BUNDLE=str(pem.with_suffix(".crt")))
        assert (trusted.code, trusted.count("new")) == (0, 1)


HOSTILE = {
    "10 MB": {"title": "x" * 10_000_000},
    "controls": {"title": "a\x00\x1b[2J\x9b1m\u202eb", "source": "../../etc/passwd"},
    "lone surrogate": {"description": "half \ud800 of it"},
    "markup": {"title": "<script>alert(1)</script> {{ 7 * 7 }} ${jndi:x} %s {0}"},
    "line ends": {"description": "a\u2028b\x85c\r\nd"},
    "its own page": {"title": '"}\n{"title": "b'},
    "the key": {"title": f"my key is {KEY}"},
    "unknown field": {"sentiment": {"deep": [1] * 9}, "__class__": "x"},
    "no text": {"author": 7, "image": {"a": 1}, "published_at": 3.5},
    "number": {"title": 7},
    "list": {"description": ["a"]},
    "no title": {"title": None},
    "blank title": {"title": " \n"},
    "script as url": {"url": "javascript:alert(1)"},
    "path as url": {"url": "../../x"},
    "broken url": {"url": "http://[::1"},
    "surrogate in url": {"url": "http://a.example/?q=\udc00"},
}
REJECTED = {
    "10 MB": "too long",
    "number": "title is not text",
    "list": "description is not text",
    "no title": "no title",
    "blank title": "no title",
    "script as url": "url is not one",
    "path as url": "url is not one",
    "broken url": "url is not one",
    "surrogate in url": "url is not one",
}


def test_hostile_articles_are_data_or_listed_rejects(server: Server, tmp_path: Path) -> None:
    kinds = list(HOSTILE)
    server.articles = [article(n, **HOSTILE[kind]) for n, kind in enumerate(kinds)]
    server.articles += [None, 3, [], "text", {}]
    done = fetch(server, tmp_path, "--from", "2026-01-01", "--to", "2026-01-01")
    server.always = Answer(404)
    assert done.code == 0
    causes = {line["row"]: line["cause"] for line in rejects_of(tmp_path)}
    expected = {kinds.index(kind): cause for kind, cause in REJECTED.items()}
    others = ["not an object"] * 4 + ["no title"]
    assert causes == {**expected, **{len(kinds) + n: cause for n, cause in enumerate(others)}}
    kept = {line["url"]: line for line in articles_of(tmp_path)}
    for kind in set(kinds) - set(REJECTED) - {"the key", "no text", "unknown field"}:
        sent = article(kinds.index(kind), **HOSTILE[kind])
        assert kept[sent["url"]] == sent
    assert kept[article(kinds.index("no text"))["url"]]["published_at"] is None
    assert set(kept[article(kinds.index("unknown field"))["url"]]) == set(article(0))
    assert kept[article(kinds.index("the key"))["url"]]["title"] == "my key is <access_key>"
    names = {path.name for path in tmp_path.parent.rglob("*")}
    assert "passwd" not in names


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ANSWERS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("data", "error", "success", "pagination"), JSON)
)


@given(ANSWERS | JSON, st.sampled_from([200, 204, 301, 400, 401, 418, 429, 500, 599]))
def test_any_answer_is_a_page_or_one_of_three_ends(answer: Any, status: int) -> None:
    feed = MediaStack(today=datetime.now(UTC).date())
    (request,) = feed.parts()
    try:
        page = feed.read(request, status, json.dumps(answer).encode())
    except (Again, Refused, Stopped) as end:
        str(end).encode()
        return
    assert status == 200
    assert isinstance(page, Page)
    for record in page.records:
        line = to_line(record, feed.columns)
        assert isinstance(line, tuple) or to_bytes(line).endswith(b"}\n")
    following = feed.after(request, page)
    assert following is None or following.parameters["offset"] > 0


def test_pauses_between_requests(server: Server, tmp_path: Path) -> None:
    begin = time.monotonic()
    fetch(server, tmp_path, *DAY, "--pause", "0.15")
    assert time.monotonic() - begin >= 0.3
    assert len(server.asked) == 3
