"""Where texts go: into a file, onto a terminal as they grow, or to who reads standard output."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from generate.asked import Asked
from generate.origin import Origin
from generate.texts import Written, batches, places, require_room, write_all
from generate.texts_file import TextsFile
from generate.voice import Voice
from pressroom.console import Progress, UserError, harmless, say
from pressroom.locks import lock
from pressroom.nn import sampling
from pressroom.samples import Sampling


def write(
    origin: Origin,
    asked: list[Asked],
    how: Sampling,
    out: Path | None,
    batch_size: int,
    processes: int | None,
) -> None:
    """Write what is asked for.

    Args:
        origin: What writes.
        asked: What is asked for.
        how: The tokens are chosen.
        out: A JSONL file that may have some of it already; None: standard output.
        batch_size: Texts at a time.
        processes: Models at a time; None: one on each GPU.

    Raises:
        UserError: A prompt is too long, a folder is damaged, or the file is another.
    """
    voice = Voice(origin)
    if out:
        there = into_file(voice, asked, how, out, batch_size, processes)
        say(f"{out}  {len(asked):,} texts, {there:,} of them were there")
    elif len(asked) == 1 and sys.stdout.isatty():
        require_room(voice, asked, how)
        _stream(voice, asked[0], how)
    else:
        written = _written(voice, asked, how, batch_size, processes)
        texts = {one.key: text["text"] for batch in written for one, text in batch}
        for one in asked:
            say(harmless(texts[one.key]) if sys.stdout.isatty() else texts[one.key])


def into_file(
    voice: Voice,
    asked: list[Asked],
    how: Sampling,
    out: Path,
    batch_size: int,
    processes: int | None = None,
) -> int:
    """Write what of a file is missing, as `write` does.

    Returns:
        How many texts were there.

    Raises:
        OtherTexts: Its texts were written in another way.
        UserError: As of `write`.
    """
    with _told(out), lock(out.with_name(f".{out.name}.lock"), str(out)):
        file = TextsFile(out, {"model": voice.fingerprint, **asdict(how)})
        left = file.missing(asked)
        there = len(asked) - len(left)
        for batch in _written(voice, left, how, batch_size, processes, there):
            file.add(batch)
        file.finish(asked)
    return there


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """What a disk refuses is said in words.

    Raises:
        UserError: It did.
    """
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(out), str(out.with_name(f".{out.name}.lock"))):
            raise
        raise UserError(
            f"--out {out}: {error.strerror}; what is written is kept, and the same command goes on"
        ) from None


def _written(
    voice: Voice,
    asked: list[Asked],
    how: Sampling,
    batch_size: int,
    processes: int | None,
    there: int = 0,
) -> Iterator[Written]:
    """Each batch when it is done, with progress shown."""
    lengths = require_room(voice, asked, how)
    if not asked:
        return
    start, tokens, total = time.monotonic(), 0, there + len(asked)
    todo = batches(asked, lengths, batch_size)
    with Progress(f"write {total} texts", total, "text", done=there) as progress:
        for batch in write_all(voice, todo, how, places(voice, processes)):
            yield batch
            tokens += sum(text["new_tokens"] for _, text in batch)
            speed = tokens / (time.monotonic() - start)
            progress.advance(len(batch), speed=f"{speed:.1f} tokens/s")


def _stream(voice: Voice, one: Asked, how: Sampling) -> None:
    """Show a text as it grows; what would drive the terminal is shown by its codes."""
    sampling.write(
        voice.load(places(voice, 1)[0]),
        voice.tokenizer,
        [one.prompt],
        how,
        keys=[one.key],
        tell=lambda piece: say(harmless(piece), end=""),
    )
    say()
