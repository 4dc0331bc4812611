"""The JSONL file of texts: a row each, added when written; at the end in the order asked for.

Killed anywhere, the same command goes on: rows that are there are kept, half a last line is cut
off. Knows nothing of models.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from generate.asked import Asked
from pressroom.console import UserError
from pressroom.files import publish_text


class OtherTexts(UserError):
    """A file that is not of these texts: written in another way, for other prompts, or no texts."""


_BEGIN = b'{"id": '


def require_place(path: Path, prompts: Path | None) -> None:
    """See that a file of texts can be there.

    Raises:
        UserError: It cannot.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"--out {path}: must end in .jsonl")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"--out {path}: {what}")
    if prompts and path.exists() and prompts.exists() and path.samefile(prompts):
        raise UserError(f"--out {path}: is the file of prompts")


class TextsFile:
    """A file of texts, as far as it is there.

    Args:
        path: Where it is, or will be.
        how: All that decides a text besides its prompt and its id; stands in each row.

    Raises:
        UserError: It is another file, or its texts were written in another way.
    """

    def __init__(self, path: Path, how: dict[str, Any]) -> None:
        self._path, self._how = path, how
        self.rows = {}  # type: dict[str, dict[str, Any]]
        content = path.read_bytes() if path.is_file() else b""
        whole, _, half = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            row = self._read(line, number)
            self.rows[str(row["id"])] = row
        if half:
            if not (half.startswith(_BEGIN) or _BEGIN.startswith(half)):
                raise self._strange(whole.count(b"\n") + 2 if whole else 1)
            os.truncate(path, len(content) - len(half))

    def _read(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row: dict[str, Any] = json.loads(line)
            how = row["how"]
            changed = [
                f"{name} {how[name]}, now {own}"
                for name, own in self._how.items()
                if how[name] != own
            ]
            _ = row["id"], row["prompt"], row["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._strange(number) from None
        if changed:
            raise OtherTexts(
                f"--out {self._path}: its texts were written with {'; '.join(changed)}: give "
                "another name, or delete it"
            )
        return row

    def _strange(self, number: int) -> OtherTexts:
        return OtherTexts(
            f"--out {self._path}: line {number} is not a text of `pressroom generate`: give "
            "another name"
        )

    def missing(self, asked: Sequence[Asked]) -> list[Asked]:
        """Those that are not there yet.

        Raises:
            UserError: An id is there with another prompt.
        """
        for one in asked:
            there = self.rows.get(one.key)
            if there and there["prompt"] != one.prompt:
                raise OtherTexts(
                    f"{one.where}: id {one.id} is in {self._path} with another prompt: give "
                    "another name by --out, or ids of your own in a .jsonl"
                )
        return [one for one in asked if one.key not in self.rows]

    def add(self, written: Iterable[tuple[Asked, dict[str, Any]]]) -> None:
        """Write rows behind those that are there."""
        lines = ""
        for one, text in written:
            title = {"title": one.title} if one.title is not None else {}
            row = {"id": one.id, **title, "prompt": one.prompt, **text, "how": self._how}
            self.rows[one.key] = row
            lines += _line(row)
        with self._path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def finish(self, asked: Sequence[Asked]) -> None:
        """Put the rows in the order asked for, behind those that were not asked for now."""
        keys = {one.key: None for one in asked}
        others = [key for key in self.rows if key not in keys]
        text = "".join(_line(self.rows[key]) for key in [*others, *keys])
        if not self._path.is_file() or self._path.read_bytes() != text.encode():
            publish_text(self._path, text)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
