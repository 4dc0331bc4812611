"""Which article is which: canonical URLs, and the ids that follow from them. Pure functions."""

import hashlib
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
