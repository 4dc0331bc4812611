"""Which article is which: canonical URLs, and the ids that follow from them. Pure functions."""

import hashlib
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

_TRACKING = frozenset({"fbclid", "gclid", "msclkid", "mc_cid", "mc_eid", "cmpid", "smid", "ref"})


def canonical_url(url: str) -> str:
    """A URL without what changes from one visit to the next.

    The scheme, `www.`, the fragment and tracking parameters go; other parameters stay, for many
    sites tell their articles apart by `?id=` or `?12345` alone.
    """
    parts = urlsplit(url.strip())
    query = [
        (key, value)
        for key, value in sorted(parse_qsl(parts.query, keep_blank_values=True))
        if key.lower() not in _TRACKING and not key.lower().startswith("utm_")
    ]
    host = (parts.hostname or "").removeprefix("www.")
    return f"{host}{parts.path.rstrip('/')}" + (f"?{urlencode(query)}" if query else "")


def article_id(url: str | None, title: str, description: str) -> str:
    """16 hex digits: of the canonical URL, else of the cleaned text."""
    identity = f"url {canonical_url(url)}" if url else f"text {title}\n{description}"
    return hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:16]


def meant(name: str) -> str:
    """The id of the article that a user names, by its id or its URL.

    Raises:
        ValueError: It is neither; says what it looks like.
    """
    name = name.strip()
    if re.fullmatch(r"[0-9a-fA-F]{16}", name):
        return name.lower()
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s]", name):
        if re.search(r"\s", name):
            raise ValueError("a URL with a space in it: one article at a time, or its id")
        return article_id(name, "", "")  # a ValueError where brackets do not match
    if re.fullmatch(r"[0-9a-fA-F]+", name):
        raise ValueError(f"{len(name)} hex digits; an article's id has 16")
    if re.fullmatch(r"[\w.-]+\.[a-zA-Z]{2,}/\S*", name):
        raise ValueError(f"a URL without its beginning: https://{name}")
    if re.fullmatch(r".+:\d+", name):
        raise ValueError("a line of a file; an article is named by its id, 16 hex digits, or a URL")
    raise ValueError("text; an article is named by its id, 16 hex digits, or its URL, https://...")
