"""Clean the text of one field: mojibake, markup, entities, whitespace, links at its end, case.

A pure function of text. Knows nothing of articles or files.
"""

import html
import re

import ftfy
import nh3

_BLOCKS = {"p", "br", "div", "li", "ul", "ol", "tr", "td", "h1", "h2", "h3", "h4", "blockquote"}
_OTHER_TAGS = re.split(
    r"\s+",
    """article aside audio body button canvas embed figcaption figure font footer form head header
    html iframe img input label link main meta nav noscript object option picture script section
    select source style svg textarea title video""",
)
_KNOWN_TAGS = nh3.ALLOWED_TAGS | _BLOCKS | set(_OTHER_TAGS)
_ESCAPES = 3
_LITERAL_LESS_THAN = re.compile(
    rf"<(?!/?(?:{'|'.join(sorted(_KNOWN_TAGS))})(?:\s[^<>]*)?/?>|!--|!doctype[^<>]*>)",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[^>]*>")
_WHITESPACE = re.compile(r"\s+")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\u200b\u200e\u200f\ufeff\ufffd]")


# What feeds put behind a description. A link's words are a sentence of their own: they stand
# behind a sentence or a bar, or a mark such as an arrow follows. `Read more books` is none.
_BEHIND = r"""(?:^|(?<=[.!?…"'”’»)\]])\ |\ ?[|–—]\ |\ -\ |\ ?(?=[\[(]))"""
_MARK = r"\ ?(?:\.\.+|…|»|›|→|>+)"
_LINK = r"""(?:
    continue\ reading
    | read\ more(?:\ here)?
    | read\ (?:the\ )?(?:full|whole|entire|original)\ (?:story|article|post|report)(?:\ here)?
    | full\ (?:story|article)(?:\ here)?
)"""
_TO_END = r"(?:[^.!?…]|[.!?](?=\S)){1,100}"
_ENDINGS = re.compile(
    rf"""(?:
    \ ?(?:\.\.+|…)?\ ?\[\+?[\d,]{{1,12}}\ chars?\]
    | {_BEHIND}(?:
        [\[(]?(?i:{_LINK}){_MARK}?[\])]?{_MARK}?\.?
        | (?i:click\ here)\ (?:to|for){_TO_END}[.!…]*
        | The\ post\ (?![a-z])(?:(?!The\ post\ ).){{1,250}}?\ (?:appeared\ first|first\ appeared)
          \ on\ {_TO_END}\.?
    )
    | (?<=\w)\ (?-i:Continue\ reading|Read\ [Mm]ore){_MARK}
    )\ ?$""",
    re.VERBOSE,
)
_REACH = 500


def preprocess_text(text: str, *, lower_case: bool = False, cut_endings: bool = False) -> str:
    r"""Return the text as a reader would see it, on one line.

    Args:
        text: As a feed has it.
        lower_case: Whether the text is lower-cased.
        cut_endings: Whether links and counts of characters behind a description are cut off.

    >>> preprocess_text("<p>It&#39;s â€œfineâ€\x9d</p><p>A &lt;b&gt;bold&lt;/b&gt; 5 < 6</p>")
    'It\'s "fine" A bold 5 < 6'
    >>> preprocess_text("Rain is near. Read more &raquo;", cut_endings=True)
    'Rain is near.'
    """
    # JSON can name half of a surrogate pair, which is no character.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _strip_markup(text)
    text = ftfy.fix_text(text, normalization="NFC", unescape_html=False)
    text = _WHITESPACE.sub(" ", _INVISIBLE.sub("", text)).strip()
    if cut_endings:
        text = _cut_endings(text)
    return text.lower() if lower_case else text


def _cut_endings(text: str) -> str:
    end = len(text)
    # Only so much of the end is looked at each time: a hostile text takes linear time.
    while found := _ENDINGS.search(text, max(0, end - _REACH), end):
        end = found.start()
    return text[:end]


def _strip_markup(text: str) -> str:
    """Remove tags, scripts and styles; feeds escape them once, twice, or more."""
    for _ in range(_ESCAPES):
        text = html.unescape(text)
    if "<" in text:
        # The sanitizer parses as browsers do, who take `x <y` for the start of a tag: only what
        # is a tag is left to it. What it leaves of markup are bare block tags, which part words.
        # A comment that does not end is text. What ends none of them is looked for once.
        open_ended = max(0, text.rfind("-->") - 3)
        text = text[:open_ended] + text[open_ended:].replace("<!--", "&lt;!--")
        text = _LITERAL_LESS_THAN.sub("&lt;", text)
        kept = nh3.clean(text, tags=_BLOCKS, attributes={})
        text = html.unescape(_TAG.sub(" ", kept))
    return text
