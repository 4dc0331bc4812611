"""`pressroom fetch` against a server: pages, kills, budgets, and what is told."""

import random
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fetching import FEED, articles_of, fetch, rejects_of, spent, start, urls_of
from mediastack_server import KEY, Answer, Server, article, error, serving

from data_prep.articles import Article, read_articles

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
RANGE = ("--from", DAYS[0], "--to", DAYS[-1])


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def filled(server: Server, per_day: int) -> list[str]:
    """Give the server articles of three days, newest first; returns URLs as a fetch meets them."""
    days = {day: [article(n, day) for n in reversed(range(per_day))] for day in DAYS}
    server.articles = [a for day in reversed(DAYS) for a in days[day]]
    return [a["url"] for day in DAYS for a in days[day]]


def test_a_range_of_days_comes_whole_and_readable(server: Server, tmp_path: Path) -> None:
    urls = filled(server, 25)
    done = fetch(server, tmp_path, *RANGE, "--limit", "10")
    assert (done.code, urls_of(tmp_path)) == (0, urls)
    assert server.pages == [(day, offset) for day in DAYS for offset in (0, 10, 20)]
    assert [done.count(name) for name in ("pages", "new", "requests")] == [9, 75, 9]
    path = tmp_path / "data" / "articles" / "mediastack.jsonl"
    read = list(read_articles(path, "store", lower_case=False))
    assert len(read) == 75
    assert all(isinstance(item, Article) for item in read)


def test_no_page_is_asked_for_twice(server: Server, tmp_path: Path) -> None:
    filled(server, 25)
    fetch(server, tmp_path, *RANGE, "--limit", "10")
    store = (tmp_path / "data" / "articles" / "mediastack.jsonl").read_bytes()
    done = fetch(server, tmp_path, *RANGE, "--limit", "10")
    assert len(server.asked) == spent(tmp_path) == 9
    assert [done.count(name) for name in ("pages", "new", "duplicates", "requests")] == [
        9,
        0,
        75,
        0,
    ]
    assert (tmp_path / "data" / "articles" / "mediastack.jsonl").read_bytes() == store
    fetch(server, tmp_path, "--from", DAYS[0], "--to", DAYS[1], "--limit", "10")
    assert len(server.asked) == 9  # days that are here already


def test_other_articles_of_the_store_are_known(server: Server, tmp_path: Path) -> None:
    filled(server, 5)
    fetch(server, tmp_path, *RANGE)
    done = fetch(server, tmp_path, *RANGE, "--days", "3", "--languages", "en")
    assert [done.count(name) for name in ("new", "duplicates")] == [0, 15]
    assert server.asked[-1]["date"] == "2026-01-01,2026-01-03"


def test_parameters_arrive_as_documented(server: Server, tmp_path: Path) -> None:
    fetch(
        server,
        tmp_path,
        *("--keywords", "storm,-cup final", "--sources", "cnn,-bbc", "--categories", "-sports"),
        *("--countries", "us,-gb", "--languages", "en,-de", "--sort", "published_asc"),
        *("--from", DAYS[0], "--to", DAYS[0]),
    )
    assert server.asked == [
        {
            "keywords": "storm,-cup final",
            "sources": "cnn,-bbc",
            "categories": "-sports",
            "countries": "us,-gb",
            "languages": "en,-de",
            "sort": "published_asc",
            "date": DAYS[0],
            "limit": "100",
            "offset": "0",
        }
    ]
    assert list(server.by_key) == [KEY]


class Killer:
    """Kills a fetch at a random moment behind each of some requests."""

    def __init__(self, server: Server, home: Path, arguments: tuple[str, ...]) -> None:
        self.server, self.home, self.arguments = server, home, arguments
        self.lots = random.Random(8)

    def run_killed(self, after: int) -> bool:
        """Start a fetch and kill it behind its nth request; whether it was still at work."""
        process = start(self.server, self.home, *self.arguments)
        first = len(self.server.asked)

        def before(number: int) -> None:
            if number == first + after:
                timer = threading.Timer(self.lots.uniform(0, 0.012), process.kill)
                timer.start()

        self.server.before = before
        process.communicate(timeout=60)
        self.server.before = None
        return process.returncode == -signal.SIGKILL


def test_ten_kills_change_nothing(server: Server, tmp_path: Path) -> None:
    urls = filled(server, 70)
    arguments = (*RANGE, "--limit", "5")
    killer = Killer(server, tmp_path / "killed", arguments)
    (tmp_path / "killed").mkdir()
    kills = 0
    while kills < 10:
        assert killer.run_killed(killer.lots.randint(1, 4))
        kills += 1
    done = fetch(server, tmp_path / "killed", *arguments)
    assert (done.code, urls_of(tmp_path / "killed")) == (0, urls)
    # A page whose sender was killed is asked for once more, and each request was counted.
    assert len(server.asked) <= 42 + 10
    assert len(server.asked) <= spent(tmp_path / "killed") <= len(server.asked) + 10
    (tmp_path / "whole").mkdir()
    fetch(server, tmp_path / "whole", *arguments)
    stores = [tmp_path / name / "data/articles/mediastack.jsonl" for name in ("killed", "whole")]
    assert stores[0].read_bytes() == stores[1].read_bytes()
    assert not list((tmp_path / "killed").rglob("*.partial-*"))


def test_never_a_request_above_the_budget(server: Server, tmp_path: Path) -> None:
    filled(server, 70)
    arguments = (*RANGE, "--limit", "5", "--budget", "9")
    killer = Killer(server, tmp_path, arguments)
    server.answers.extend([Answer(503), Answer(cut=40), error("rate_limit_reached")])
    for after in (1, 2, 3):
        assert killer.run_killed(after)
    for _ in range(2):
        done = fetch(server, tmp_path, *arguments)
        assert done.code == 1
        assert "the budget of 9 requests a month (--budget) is spent" in done.err
        assert "0 left this month" in done.out
    assert len(server.asked) <= spent(tmp_path) == 9
    more = fetch(server, tmp_path, *arguments[:-1], "11")
    assert (more.code, more.count("requests")) == (1, 2)
    assert len(server.asked) <= 11


def test_a_second_fetch_is_refused_by_name(server: Server, tmp_path: Path) -> None:
    filled(server, 1)
    server.always = Answer(delay=30)
    holding = start(server, tmp_path)
    while not server.asked:
        pass
    try:
        second = fetch(server, tmp_path)
        assert second.code == 2
        assert f"another process is at it: process {holding.pid} on " in second.err
        # Into another store it would spend the same budget.
        third = fetch(server, tmp_path, "--into", "other.jsonl")
        assert f"fetch mediastack: another process is at it: process {holding.pid}" in third.err
        assert len(server.asked) == 1
    finally:
        holding.kill()
        holding.communicate()


def test_a_live_feed_that_moves(server: Server, tmp_path: Path) -> None:
    """Articles that come in push others to the next page: they are duplicates, none is missed."""
    urls = filled(server, 20)
    server.moves.extend([3, 0, 7, 1])
    done = fetch(server, tmp_path, "--limit", "10")
    assert done.code == 0
    assert set(urls) <= set(urls_of(tmp_path))
    assert "gaps" not in done.out
    server.moves.extend([-5])
    gap = fetch(server, tmp_path, "--limit", "10")
    assert gap.count("gaps") == 1
    assert "a page does not meet the one before" in gap.err


def test_a_live_fetch_begins_anew_when_it_was_whole(server: Server, tmp_path: Path) -> None:
    filled(server, 4)
    fetch(server, tmp_path)
    server.articles.insert(0, article(99, DAYS[-1]))
    again = fetch(server, tmp_path)
    assert (again.count("new"), len(server.asked)) == (1, 2)
    server.answers.append(error("usage_limit_reached"))
    assert fetch(server, tmp_path).code == 1
    server.articles.insert(0, article(100, DAYS[-1]))
    assert fetch(server, tmp_path).count("new") == 1


def test_today_is_live_and_yesterday_is_not(server: Server, tmp_path: Path) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    server.articles = [article(1, today)]
    fetch(server, tmp_path, "--from", today)
    server.articles.insert(0, article(2, today))
    assert fetch(server, tmp_path, "--from", today).count("new") == 1


def test_pages_are_limited(server: Server, tmp_path: Path) -> None:
    filled(server, 30)
    done = fetch(server, tmp_path, *RANGE, "--limit", "10", "--pages", "2")
    assert (done.code, done.count("pages"), len(server.asked)) == (0, 6, 6)


@pytest.mark.parametrize("total", [None, "many", -1, 0, 10**9])
def test_a_total_that_is_not_true_ends(server: Server, tmp_path: Path, total: object) -> None:
    filled(server, 15)
    server.total = total
    done = fetch(server, tmp_path, "--from", DAYS[0], "--to", DAYS[0], "--limit", "10")
    assert done.code == 0
    assert len(server.asked) <= 3
    assert len(articles_of(tmp_path)) == 15


def test_a_dry_run_asks_nothing_and_writes_nothing(server: Server, tmp_path: Path) -> None:
    told = fetch(server, tmp_path, *RANGE, "--dry-run", MEDIASTACK_ACCESS_KEY="")
    assert "at least 3, at most 100" in told.out
    assert not server.asked
    assert not list(tmp_path.iterdir())
    filled(server, 15)
    fetch(server, tmp_path, *RANGE, "--limit", "10", "--budget", "3")
    rest = fetch(server, tmp_path, *RANGE, "--limit", "10", "--pages", "2", "--dry-run")
    assert "3, 1 of them whole on the disk" in rest.out
    assert "at least 2, at most 3" in rest.out
    assert "97 of 100 left" in rest.out


def test_every_mistake_is_told_at_once(server: Server, tmp_path: Path) -> None:
    wrong = [
        *(
            "--from",
            "2026-13-01",
            "--categories",
            "sport",
            "--languages",
            "eng",
            "--sort",
            "newest",
        ),
        *("--countries", "usa", "--limit", "101", "--into", "articles.csv"),
    ]
    done = fetch(server, tmp_path, *wrong, MEDIASTACK_ACCESS_KEY="")
    assert done.code == 2
    for line in (
        "--from: '2026-13-01' is not a day, YYYY-MM-DD",
        "'sport' is not one of",
        "did you mean sports?",
        "did you mean en?",
        "--sort: 'newest'",
        "--countries: 'usa' is not a country's two letters",
        "--limit: 101",
        "must be a file whose name ends in .jsonl",
        "MEDIASTACK_ACCESS_KEY is not set",
    ):
        assert line in done.err
    assert not server.asked
    later = fetch(server, tmp_path, "--from", "2999-01-01")
    assert "is yet to come" in later.err
    turned = fetch(server, tmp_path, "--from", DAYS[1], "--to", DAYS[0])
    assert f"--to: {DAYS[0]} is before --from {DAYS[1]}" in turned.err


def test_http_is_refused_unless_it_is_asked_for(server: Server, tmp_path: Path) -> None:
    done = fetch(Server(url=server.url.replace("http:", "HTTP:")), tmp_path)
    assert (done.code, server.asked) == (2, [])
    assert "shows your key to all: https, or --allow-http" in done.err


def test_rejects_are_listed_once(server: Server, tmp_path: Path) -> None:
    server.articles = [article(1), "no article", article(2, url=None)]
    for _ in range(2):
        done = fetch(server, tmp_path, "--from", DAYS[0], "--to", DAYS[0])
        assert done.count("rejects") == 2
        assert "rejects     2: not an object 1, no url 1; listed in " in done.out
    found = [(line["row"], line["cause"], line["detail"]) for line in rejects_of(tmp_path)]
    assert found == [(1, "not an object", "a JSON str"), (2, "no url", "")]
    (page,) = (tmp_path / FEED / "pages").rglob("*.gz")
    assert {line["page"] for line in rejects_of(tmp_path)} == {page.name[: -len(".json.gz")]}
