"""One packed row as text in which the loss mask can be seen.

Colour says what is trained on; reverse video says what is a special token. Without colour,
brackets enclose what is not trained on. Articles are data: a character that would move the cursor,
colour the text or turn its direction is shown by its code. Knows nothing of files.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import click

from pressroom.dataset import IGNORE
from pressroom.tokenizer import ArticleTokenizer

_MARKS = "⟦⟧⏎"


@dataclass(frozen=True)
class Span:
    """Some text of a piece, all of it trained on or none."""

    text: str
    trained: bool
    special: bool = False
    """Whether it is the name of a token that no text contains."""


def spans(ids: Sequence[int], labels: Sequence[int], tokenizer: ArticleTokenizer) -> Iterator[Span]:
    """Decode a piece: special tokens one by one, the text between them as a whole."""
    names = tokenizer.special_names()
    size = tokenizer.vocabulary_size
    names.update({n: f"<id {n}>" for n in ids if not 0 <= n < size})
    trained = [label != IGNORE for label in labels]
    for special, group in groupby(range(len(ids)), key=lambda i: ids[i] in names):
        places = list(group)
        if special:
            yield from (Span(names[ids[i]], trained[i], special=True) for i in places)
            continue
        runs = [list(run) for _, run in groupby(places, key=trained.__getitem__)]
        texts = tokenizer.decode_runs([[ids[i] for i in run] for run in runs])
        for run, text in zip(runs, texts, strict=True):
            yield Span(visible(text, names.values()), trained[run[0]])


def visible(text: str, names: Collection[str] = ()) -> str:
    r"""Text that drives no terminal, and that is not taken for a mark or a special token.

    >>> visible("one\ntwo \x1b[31m</s>", ["</s>"])
    'one⏎\ntwo \\x1b[31m\\x3c/s>'
    """
    for name in names:
        text = text.replace(name, _code(name[0]) + name[1:])
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    # Cc control, Cf format (direction, joiners), Cs, Co, Cn no character, Zl and Zp line ends.
    hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return _code(character) if hidden or character in _MARKS else character


def _code(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def show(found: Sequence[Span], *, color: bool) -> str:
    """Spans as one text, indented by four columns."""
    if color:
        text = "".join(_styled(span) for span in found)
    else:
        text = ""
        for trained, group in groupby(found, key=lambda span: span.trained):
            run = "".join(span.text for span in group)
            text += run if trained else f"⟦{run}⟧"
    return re.sub("^", "    ", text, flags=re.MULTILINE)


def _styled(span: Span) -> str:
    color, dim = ("cyan", None) if span.trained else (None, True)
    return click.style(span.text, fg=color, dim=dim, reverse=span.special or None)


def legend(tokenizer: ArticleTokenizer, *, color: bool) -> str:
    """What the marks of `show` mean."""
    names = tokenizer.special_names()
    trained = show([Span("trained on", trained=True)], color=color).strip()
    untrained = show([Span("not trained on", trained=False)], color=color).strip()
    return (
        f"{trained}  {untrained}  {names[tokenizer.bos_id]} BOS  {names[tokenizer.eos_id]} eos  "
        "⏎ line break  \\x1b a character by its code"
    )


def show_row(
    name: str,
    row: dict[str, list[int]],
    sequence_length: int,
    tokenizer: ArticleTokenizer,
    *,
    color: bool,
) -> str:
    """A packed row: what is in it, then each of its articles as a block.

    Args:
        name: What the row is called.
        row: The columns of `data_prep/shards.py`, of a row in which they agree.
        sequence_length: Tokens that the row has room for.
        tokenizer: The one that made the row.
        color: Whether the mask is shown by colour.
    """
    lengths, ids, labels = row["seq_lengths"], row["input_ids"], row["labels"]
    starts = list(accumulate(lengths, initial=0))
    blocks = [
        f"{name}: {len(ids):,} of {sequence_length:,} tokens, {_trained(labels):,} trained on, "
        f"{len(lengths)} article{'s' * (len(lengths) > 1)}; positions restart at "
        + ", ".join(map(str, starts[:-1]))
    ]
    for number, (start, stop) in enumerate(pairwise(starts), 1):
        piece, its_labels = ids[start:stop], labels[start:stop]
        notes = [
            f"  article {number}: positions 0 to {stop - start - 1}, "
            f"{_trained(its_labels):,} trained on"
        ]
        if piece[0] != tokenizer.bos_id:
            notes.append("continued: begins with the last token of the piece before, as context")
        if piece[-1] != tokenizer.eos_id:
            notes.append("goes on in another row")
        text = show(list(spans(piece, its_labels, tokenizer)), color=color)
        blocks.append("; ".join(notes) + "\n" + text)
    return "\n".join(blocks)


def _trained(labels: Sequence[int]) -> int:
    return sum(label != IGNORE for label in labels)
