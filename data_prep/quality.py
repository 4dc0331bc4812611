"""Is an article good enough to learn from, by its own text: `data.quality` of a recipe.

A pure function of an article. Knows nothing of files or of other articles.
"""

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from data_prep.articles import Article
from pressroom import languages
from pressroom.sections import Quality
from pressroom.words import words

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

RUN = 5
"""Words of a run that comes again."""
_CLOSING = "\"'”’»)]}"
_CUT = ("..", "…")
_ENDS = tuple(".!?。！？؟۔।")
_NO_LANGUAGE = "zxx"
"""The library's word for numbers, markup and the like."""


def judge(article: Article, quality: Quality) -> tuple[str, str] | None:
    """Say why an article is not good enough, if it is not.

    Returns:
        The first cause, and what was found beside what is asked; None: it is good.
    """
    return next(_faults(article, quality), None)


def _faults(article: Article, quality: Quality) -> Iterator[tuple[str, str]]:
    """What is wrong, the costly questions last; what is not asked is not looked at."""
    text, asked = article.description, quality
    found = words(text)
    if len(found) < asked.min_words:
        yield "too few words", f"{len(found):,}; quality.min_words: {asked.min_words:,}"
    if asked.max_words is not None and len(found) > asked.max_words:
        yield "too many words", f"{len(found):,}; quality.max_words: {asked.max_words:,}"
    if asked.whole_sentences and not ends(text):
        yield "no end of a sentence", f"ends {text[-30:]!r}; quality.whole_sentences: true"
    if asked.max_repetition < 1 and (share := repetition(found)) > asked.max_repetition:
        yield "repetition", f"{share:.3f}; quality.max_repetition: {asked.max_repetition}"
    if asked.max_capitals < 1:
        share = max(capitals(article.title), capitals(text))
        if share > asked.max_capitals:
            yield "capitals", f"{share:.3f}; quality.max_capitals: {asked.max_capitals}"
    if asked.min_letters > 0 and (share := letters(text)) < asked.min_letters:
        yield "few letters", f"{share:.3f}; quality.min_letters: {asked.min_letters}"
    if asked.languages:
        code = language(f"{article.title}\n{text}")
        if code not in asked.languages:
            name = languages.NAMES.get(code, "none")
            yield "language", f"{name} ({code}); quality.languages: {', '.join(asked.languages)}"


def ends(text: str) -> bool:
    """Whether a text ends as a sentence does; three dots say that it was cut off.

    >>> ends('She said: "No."'), ends("He went to the"), ends("He went to...")
    (True, False, False)
    """
    bare = text.rstrip(_CLOSING + " ")
    return bare.endswith(_ENDS) and not bare.endswith(_CUT)


def letters(text: str) -> float:
    """The share of letters, their accents, and spaces among characters."""
    good = sum(c == " " or unicodedata.category(c)[0] in "LM" for c in text)
    return good / max(1, len(text))


def capitals(text: str) -> float:
    """The share of capitals among letters."""
    return sum(map(str.isupper, text)) / max(1, sum(map(str.isalpha, text)))


def repetition(found: list[str]) -> float:
    """The share of words that stand in a run of words that came before."""
    seen: set[tuple[str, ...]] = set()
    again = [False] * len(found)
    lowered = [word.casefold() for word in found]
    for start in range(len(found) - RUN + 1):
        run = tuple(lowered[start : start + RUN])
        if run in seen:
            again[start : start + RUN] = [True] * RUN
        seen.add(run)
    return sum(again) / max(1, len(found))


def language(text: str) -> str:
    """The likeliest language: a code of `pressroom/languages.py`, or `zxx` for no language."""
    code: str = _identifier().classify(text)[0]
    return code


@cache
def _identifier() -> "LanguageIdentifier":
    # Its model takes 120 MB and half a second: only who asks for languages pays for it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Without pidgins and dialects, which short texts in large languages are mistaken for.
    identifier.set_languages([*languages.NAMES, _NO_LANGUAGE])
    return identifier
