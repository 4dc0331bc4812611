"""Clean the text of one field: mojibake, markup, entities, whitespace, optional lower case.

A pure function of text. Knows nothing of articles or files.
"""

import html
import re

import ftfy
import nh3

_BLOCKS = {"p", "br", "div", "li", "ul", "ol", "tr", "td", "h1", "h2", "h3", "h4", "blockquote"}
_TAG = re.compile(r"<[^>]*>")
_WHITESPACE = re.compile(r"\s+")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\u200b\u200e\u200f\ufeff\ufffd]")


def preprocess_text(text: str, *, lower_case: bool = False) -> str:
    r"""Return the text as a reader would see it, on one line.

    >>> preprocess_text("<p>It&#39;s â€œfineâ€\x9d</p><p>A &lt;b&gt;bold&lt;/b&gt; 5 < 6</p>")
    'It\'s "fine" A bold 5 < 6'
    """
    text = _strip_markup(text)
    text = ftfy.fix_text(text, normalization="NFC", unescape_html=False)
    text = _WHITESPACE.sub(" ", _INVISIBLE.sub("", text)).strip()
    return text.lower() if lower_case else text


def _strip_markup(text: str) -> str:
    """Remove tags, scripts and styles; feeds escape them once or twice."""
    text = html.unescape(text)
    if "<" in text:
        # The sanitizer parses as browsers do. What it leaves of markup are bare block tags,
        # which part words; every other `<` is written `&lt;`.
        kept = nh3.clean(text, tags=_BLOCKS, attributes={})
        text = html.unescape(_TAG.sub(" ", kept))
    return text
