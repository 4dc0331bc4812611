"""Articles from a feed into a store that recipes read: `pressroom fetch FEED`.

    data/articles/FEED.jsonl      one article a line, none twice
    data/articles/FEED.rejects    what of the feed is no article, and why
    data/feeds/FEED/              pages as they came, requests of each month

The same command goes on where it stopped, however it stopped. Knows nothing of how a feed is asked
and read.
"""

import os
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click

from data_prep import mediastack
from data_prep.budget import Budget
from data_prep.client import Client, Pace
from data_prep.feed import Feed, Stopped
from data_prep.page_cache import PageCache
from data_prep.store import open_store, require_store_name
from data_prep.walk import Walk, foretold, summary
from pressroom.console import Progress, UserError, entry, log, say
from pressroom.files import home, require_home
from pressroom.locks import lock

_COMMON = (
    click.option("--into", metavar="FILE", help="The store. [data/articles/FEED.jsonl]"),
    click.option(
        "--budget",
        type=click.IntRange(min=0),
        default=100,
        show_default=True,
        help="Requests a calendar month (UTC): of all fetches here, failed ones counted.",
    ),
    click.option("--pages", type=click.IntRange(min=1), help="At most, of each window. [all]"),
    click.option(
        "--pause",
        type=click.FloatRange(min=0),
        default=Pace.pause,
        show_default=True,
        help="Seconds between two requests; the first wait after a failure.",
    ),
    click.option(
        "--attempts",
        type=click.IntRange(min=1),
        default=Pace.attempts,
        show_default=True,
        help="Requests for one page before it is given up.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0.01),
        default=Pace.timeout,
        show_default=True,
        help="Seconds without a byte of an answer.",
    ),
    click.option("--dry-run", is_flag=True, help="Say how many requests; send none."),
)


def _options_of_every_feed(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_COMMON):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Articles from a feed -> data/articles/FEED.jsonl."""


@main.command("mediastack")
@click.option("--keywords", default="", metavar="WORDS", help="`a,-b`: with a, without b.")
@click.option("--sources", default="", metavar="LIST", help="`cnn,-bbc`; so the next three.")
@click.option("--categories", default="", metavar="LIST", help=", ".join(mediastack.CATEGORIES))
@click.option("--countries", default="", metavar="LIST", help="Two letters each: `us,gb`.")
@click.option("--languages", default="", metavar="LIST", help=", ".join(mediastack.LANGUAGES))
@click.option("--sort", default="", metavar="ORDER", help=", ".join(mediastack.SORTS))
@click.option("--from", "first", default="", metavar="DAY", help="YYYY-MM-DD; needs a paid plan.")
@click.option("--to", "last", default="", metavar="DAY", help="The last day. [today]")
@click.option("--days", type=int, default=1, show_default=True, help="Of one window of dates.")
@click.option("--limit", type=int, default=100, show_default=True, help="Articles a page.")
@click.option("--base-url", default=mediastack.BASE, show_default=True, metavar="URL")
@click.option("--allow-http", is_flag=True, help="Let --base-url be http: the key goes in clear.")
@_options_of_every_feed
def from_mediastack(
    first: str,
    last: str,
    into: str | None,
    budget: int,
    pages: int | None,
    pause: float,
    attempts: int,
    timeout: float,
    dry_run: bool,
    **query: Any,
) -> None:
    """MediaStack's news, with the key in MEDIASTACK_ACCESS_KEY.

    Titles and descriptions; it has no bodies. Without --from what is newest, where the same
    command asks anew when it came to its end before, or on another day. An article comes into
    the store once. Ends with 1 when it stopped before its end: the same command goes on.
    """
    problems: list[str] = []

    def tried(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except UserError as error:
            problems.append(str(error))
            return None

    days = [tried(lambda: _day("--from", first)), tried(lambda: _day("--to", last))]
    # What compares the two is said when both are days.
    query["first_day"], query["last_day"] = (None, None) if problems else days
    key = tried(lambda: "" if dry_run else mediastack.access_key(os.environ.get(mediastack.KEY)))
    today = datetime.now(UTC).date()
    feed = tried(lambda: mediastack.MediaStack(key=key or "", today=today, **query))
    path = home() / Path(into or "data/articles/mediastack.jsonl").expanduser()
    tried(lambda: require_store_name(path))
    if problems:
        raise UserError("\n".join(problems))
    pace = Pace(pause=pause, attempts=attempts, timeout=timeout)
    fetch(feed, path, budget=budget, pages=pages, pace=pace, dry_run=dry_run)


def _day(option: str, text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise UserError(f"{option}: {text!r} is not a day, YYYY-MM-DD") from None


def fetch(
    feed: Feed, path: Path, *, budget: int, pages: int | None, pace: Pace, dry_run: bool = False
) -> None:
    """Fetch a feed into a store, and say what came.

    Args:
        feed: What is asked for.
        path: The store.
        budget: Requests a calendar month.
        pages: Of each part at most.
        pace: How fast and patiently.
        dry_run: Say how many requests there would be; ask for nothing, write nothing.

    Raises:
        UserError: The feed says no, or another process fetches from it or into the store.
        SystemExit: With 1 when it stopped before its end.
    """
    require_home()
    folder = home() / "data" / "feeds" / feed.name
    requests = Budget(folder / "requests", budget)
    if dry_run:
        say("\n".join(foretold(feed, PageCache(folder), requests, pages)))
        return
    with (
        lock(folder / ".lock", f"fetch {feed.name}"),
        open_store(path) as store,
        Client(feed, requests, pace) as client,
        Progress(f"fetch {feed.name}", len(feed.parts()), "pages") as progress,
    ):
        cache = PageCache(folder)
        cache.clear_partial()
        walk = Walk(feed, client, cache, store, pages)
        stopped = ""
        try:
            walk.run(progress)
        except Stopped as reason:
            stopped = str(reason)
        finally:
            say("\n".join(summary(walk.tally, store, client.sent, requests.left)))
    if stopped:
        log.warning("stopped: %s. What came is kept; the same command goes on", stopped)
    elif walk.tally.set_aside:
        log.warning("some pages could not be read; the same command asks for them again")
    else:
        return
    sys.exit(1)


if __name__ == "__main__":
    entry(main)
