"""Text as words, for counting and comparing. Knows nothing of languages beyond their writing."""

import re

_WRITTEN_TOGETHER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Chinese and Japanese put no spaces between words: there a character is a word."""
_LETTERS = rf"[^\W{_WRITTEN_TOGETHER}]+"
_WORD = re.compile(rf"[{_WRITTEN_TOGETHER}]|{_LETTERS}(?:['’]{_LETTERS})*")


def words(text: str) -> list[str]:
    """Split text into its words, without punctuation.

    >>> words("It's 5 o'clock: 市长!")
    ["It's", '5', "o'clock", '市', '长']
    """
    return _WORD.findall(text)
