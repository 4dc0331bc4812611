"""The article store: an append-only JSONL file, one article a line, none twice by its URL.

`data/articles/NAME.jsonl` is what recipes read; what did not become an article stands beside it in
`NAME.rejects`, of the same form. A line that a kill cut short is repaired at the next start. Knows
nothing of where articles come from.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pressroom.console import UserError, log
from pressroom.identity import article_id
from pressroom.locks import lock

LINE_BYTES = 1 << 20
"""A longer article is none."""
Line = dict[str, Any]


class Lines:
    """An append-only JSONL file that holds no key twice.

    Args:
        path: The file; made when there is something to write.
        key_of: A line's key; None for a line that has none, which is kept and never compared.
    """

    def __init__(self, path: Path, key_of: Callable[[Line], str | None]) -> None:
        self.path, self._key_of = path, key_of
        self._repair()
        self._keys: set[str] = set()
        self.count = 0
        for line in self._read():
            self.count += 1
            if line is not None and (key := key_of(line)) is not None:
                self._keys.add(key)

    def _repair(self) -> None:
        """End the file with a whole line: one that was cut goes, for its page is read again."""
        if not self.path.is_file():
            return
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            start = size
            while start and _at(file, start - 1) != b"\n":
                start = _line_start(file, start)
            if start == size:
                return
            file.seek(start)
            if _parsed(file.read()) is not None:
                file.write(b"\n")  # whole: somebody's editor left out its end
            else:
                log.info("%s: its last line was cut short; it goes", self.path)
                file.truncate(start)
            os.fsync(file.fileno())

    def _read(self) -> Iterator[Line | None]:
        if self.path.is_file():
            with self.path.open("rb") as file:
                for line in file:
                    if line.strip():
                        yield _parsed(line)

    def append(self, lines: Sequence[Line]) -> list[bool]:
        """Write those that are new, durably, in one go.

        Returns:
            For each line whether it was new.
        """
        new, content = [], bytearray()
        added = set[str]()
        for line in lines:
            key = self._key_of(line)
            is_new = key is None or not (key in self._keys or key in added)
            new.append(is_new)
            if is_new:
                content += to_bytes(line)
                if key is not None:
                    added.add(key)
        if content:
            self._write(bytes(content))
        self._keys |= added
        self.count += sum(new)
        return new

    def _write(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)  # a full disk leaves no half page
                raise


def _at(file: BinaryIO, position: int) -> bytes:
    file.seek(position)
    return file.read(1)


def _line_start(file: BinaryIO, end: int, block: int = 1 << 16) -> int:
    """Where the line that goes up to `end` begins, looked for in one block before it."""
    begin = max(end - block, 0)
    file.seek(begin)
    return begin + file.read(end - begin).rfind(b"\n") + 1


def _parsed(line: bytes) -> Line | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def to_bytes(line: Line) -> bytes:
    """A line as it stands in the file: UTF-8, and half of a surrogate pair as JSON's escape."""
    text = json.dumps(line, ensure_ascii=False, separators=(", ", ": "))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def url_id(line: Line) -> str | None:
    """An article's id, as preparation will give it by its URL."""
    url = line.get("url")
    try:
        return article_id(url, "", "") if isinstance(url, str) and url else None
    except ValueError:
        return None


def _page_and_row(line: Line) -> str:
    return f"{line.get('page')}:{line.get('row')}"


def to_line(record: Any, columns: Mapping[str, str]) -> Line | tuple[str, str]:
    """A feed's record as a line of the store, its text untouched, or (cause, detail) of a reject.

    Args:
        record: Whatever a stranger sent.
        columns: What is kept: our name -> the feed's. Besides title, description and URL, what
            is not text is null.
    """
    if not isinstance(record, dict):
        return "not an object", f"a JSON {type(record).__name__}"
    line: Line = {name: record.get(column) for name, column in columns.items()}
    for name, value in line.items():
        if isinstance(value, str) or value is None:
            continue
        if name in ("title", "description", "url"):
            return f"{name} is not text", f"{value!r:.60}"
        line[name] = None
    for name in ("title", "url"):
        if not (line[name] or "").strip():
            return f"no {name}", ""
    if not line["url"].strip().lower().startswith(("http://", "https://")):
        return "url is not one", f"{line['url']!r:.60}"
    if url_id(line) is None:
        return "url is not one", f"{line['url']!r:.60}"
    size = len(to_bytes(line))
    if size > LINE_BYTES:
        return "too long", f"{size} bytes"
    return line


class Store:
    """Articles and rejects of one file of articles."""

    def __init__(self, path: Path) -> None:
        self.articles = Lines(path, url_id)
        self.rejects = Lines(path.with_suffix(".rejects"), _page_and_row)


def require_store_name(path: Path) -> None:
    """See that recipes will read a store of this name.

    Raises:
        UserError: They will not.
    """
    if path.suffix != ".jsonl" or path.is_dir():
        raise UserError(f"--into: {path}: must be a file whose name ends in .jsonl")


@contextlib.contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """Hold a store for as long as the block runs.

    Raises:
        UserError: Another process holds it.
    """
    with lock(path.with_name(f".{path.name}.lock"), str(path)):
        yield Store(path)
