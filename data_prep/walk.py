"""The walk through a feed: part after part, page after page, into a store.

It starts from the first page each time; pages that are on disk are read there, and articles that
are in the store are known by their URLs. So a walk that was killed anywhere ends as one that was
not. Knows nothing of HTTP and of any feed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_prep.budget import Budget
from data_prep.client import Client
from data_prep.feed import Again, Feed, Page, Request, Stopped
from data_prep.page_cache import PageCache
from data_prep.store import Line, Store, to_line, url_id
from pressroom.console import Progress, log

_BROKEN_IN_A_ROW = 2
"""So many pages that cannot be read end a walk: the next would be no better."""


@dataclass
class Tally:
    """What a walk has met: received = new + duplicates + rejects."""

    pages: int = 0
    cached: int = 0
    received: int = 0
    new: int = 0
    duplicates: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    set_aside: list[str] = field(default_factory=list)
    gaps: int = 0
    """Pages of a live part that do not meet the page before: articles may lie between."""


class Walk:
    """One walk. `tally` tells how far it came, also after an exception.

    Args:
        feed: What is asked for.
        client: Asks for pages that are not in the cache.
        cache: The feed's pages.
        store: Where articles go.
        most_pages: Of each part.
    """

    def __init__(
        self,
        feed: Feed,
        client: Client,
        cache: PageCache,
        store: Store,
        most_pages: int | None = None,
    ) -> None:
        self._feed, self._client, self._cache, self._store = feed, client, cache, store
        self._most_pages = most_pages
        self._broken = 0
        self.tally = Tally()

    def run(self, progress: Progress) -> None:
        """Walk to the end.

        Raises:
            Refused: The feed says no until its user does something.
            Stopped: It ends before: the same walk goes on later.
        """
        parts = self._feed.parts()
        for number, first in enumerate(parts):
            self._walk_part(first, progress, len(parts) - number - 1)

    def _walk_part(self, first: Request, progress: Progress, parts_left: int) -> None:
        part = first.name
        request: Request | None = first
        if first.live_on:
            request = replace(first, round=self._cache.round(part))
        before: set[str | None] = set()
        done = 0
        is_whole = True
        while request is not None and done != self._most_pages:
            page = self._page(request)
            done += 1
            is_whole &= page is not None
            if page is not None:
                ids = self._take(request, page)
                if request.live_on and done > 1 and before.isdisjoint(ids):
                    self.tally.gaps += 1
                    log.warning("%s: a page does not meet the one before", request.label)
                before = ids
                pages_left = -(-(page.left or 0) // max(len(page.records), 1))
                if self._most_pages:
                    pages_left = min(pages_left, self._most_pages - done)
                progress.expect(self.tally.pages + pages_left + parts_left)
            progress.advance(1, new=str(self.tally.new))
            request = self._feed.after(request, page)
        if first.live_on and is_whole:
            self._cache.end_round(part)

    def _page(self, request: Request) -> Page | None:
        """A page from the disk, else from the feed; None for one that was set aside."""
        body = self._cache.get(request.name)
        if body is not None:
            try:
                page = self._feed.read(request, 200, body)
            except Again as again:
                log.warning("%s: %s: asking for it again", request.name, again.cause)
            else:
                self._broken = 0
                self.tally.pages += 1
                self.tally.cached += 1
                return page
        try:
            body, page = self._client.ask(request)
        except Again as again:
            if again.answer is None:
                raise Stopped(f"{again.cause}, however often it was asked for") from None
            self._set_aside(request, again.cause, again.answer)
            return None
        self._broken = 0
        self._cache.put(request.name, body)
        self.tally.pages += 1
        return page

    def _set_aside(self, request: Request, cause: str, answer: bytes) -> None:
        path = self._cache.set_aside(request.name, f"{request.label}: {cause}", answer)
        log.warning("%s: set aside in %s", cause, path)
        self.tally.set_aside.append(f"{path}: {cause}")
        self._broken += 1
        if self._broken == _BROKEN_IN_A_ROW:
            raise Stopped(f"{self._broken} pages in a row cannot be read ({cause})")

    def _take(self, request: Request, page: Page) -> set[str | None]:
        """Put a page's articles into the store, and the rest among the rejects.

        Returns:
            The articles' ids.
        """
        lines: list[Line] = []
        rejects: list[Line] = []
        for row, record in enumerate(page.records):
            line = to_line(record, self._feed.columns)
            if isinstance(line, dict):
                lines.append(line)
            else:
                cause, detail = line
                rejects.append({"page": request.name, "row": row, "cause": cause, "detail": detail})
        new = sum(self._store.articles.append(lines))
        self._store.rejects.append(rejects)
        tally = self.tally
        tally.received += len(page.records)
        tally.new += new
        tally.duplicates += len(lines) - new
        tally.rejects.update(reject["cause"] for reject in rejects)
        return {url_id(line) for line in lines}


def summary(tally: Tally, store: Store, sent: int, left: int) -> Sequence[str]:
    """A walk's lines for a person."""
    causes = ", ".join(f"{cause} {count:,}" for cause, count in tally.rejects.most_common())
    listed = f": {causes}; listed in {store.rejects.path}" if causes else ""
    lines = [
        f"pages       {tally.pages:,}, {tally.cached:,} of them from the disk",
        f"articles    {tally.received:,}",
        f"new         {tally.new:,} -> {store.articles.path}, now {store.articles.count:,}",
        f"duplicates  {tally.duplicates:,}",
        f"rejects     {tally.rejects.total():,}{listed}",
        f"requests    {sent:,} sent, {left:,} left this month",
    ]
    lines += [f"set aside   {line}" for line in tally.set_aside]
    if tally.gaps:
        lines.append(f"gaps        {tally.gaps:,}: the feed moved, articles may be missing")
    return lines


def foretold(feed: Feed, cache: PageCache, budget: Budget, most_pages: int | None) -> Sequence[str]:
    """How many requests a walk would take, as far as that is known before."""
    parts = feed.parts()
    found = [_pages_here(feed, cache, part, most_pages) for part in parts]
    here = sum(count for count, _ in found)
    missing = [count for count, is_whole in found if not is_whole]
    most = budget.left
    if most_pages:
        most = min(most, sum(most_pages - count for count in missing))
    most *= bool(missing)
    least = len(missing) if most_pages is None else min(len(missing), most)
    most_told = f"at most {most:,} and those that fail"
    if least > most:
        most_told = f"of which the budget allows {most:,} this month"
    return [
        f"windows     {len(parts):,}, {len(parts) - len(missing):,} of them whole on the disk",
        f"pages       {here:,} on the disk: not asked for again",
        f"requests    at least {least:,}, {most_told}",
        f"budget      {budget.left:,} of {budget.limit:,} left this month: never more",
    ]


def _pages_here(
    feed: Feed, cache: PageCache, part: Request, most_pages: int | None
) -> tuple[int, bool]:
    """How many pages of a part are on the disk, and whether that is all of them."""
    request: Request | None = replace(part, round=cache.round(part.name)) if part.live_on else part
    count = 0
    while request is not None and count != most_pages:
        body = cache.get(request.name)
        if body is None:
            return count, False
        try:
            page = feed.read(request, 200, body)
        except Again:
            return count, False
        count += 1
        request = feed.after(request, page)
    return count, True
