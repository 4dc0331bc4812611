"""Files of articles, or portions of them -> records with their numbers: JSONL, Parquet, Arrow.

A file that is cut or damaged is an error, never a shorter file. Memory is bounded by one batch of
rows. Knows nothing of what a record means but which of its columns are wanted.
"""

import codecs
import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pressroom.console import UserError
from pressroom.sources import SUFFIXES

Columns = Mapping[str, str]
"""Field of an article -> what it is called in the file."""
_REQUIRED = ("title", "description")
# Buffers under another type: text is looked at without a demand on its encoding.
_AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that is no record at all."""

    cause: str
    detail: str


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of a file: bytes of JSONL, row groups of Parquet, batches of Arrow."""

    start: int = 0
    stop: float = math.inf
    first: int = 1
    """The number of its first record, or line, in the file."""


WHOLE = Portion()


def read_records(
    path: Path, name: str, columns: Columns, portion: Portion = WHOLE
) -> Iterator[tuple[int, Any]]:
    """The records of a file in its order, each with its number, from 1 in the file.

    Args:
        path: A JSONL, Parquet or Arrow file.
        name: What the file is called in errors.
        columns: The columns that are wanted; those of title and description, and those that are
            not called as their field, must be there.
        portion: Which of its records.

    Yields:
        A number, and a mapping by the file's own names, whatever else JSON holds, or Unreadable.

    Raises:
        UserError: The file lacks a column, or is damaged.
    """
    reader = _READERS[path.suffix]  # `pressroom/sources.py` has refused the others
    return reader(path, name, columns, portion)


def _read_jsonl(
    path: Path, name: str, columns: Columns, portion: Portion
) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        at = file.seek(portion.start)
        for number, line in enumerate(file, start=portion.first):
            if at >= portion.stop:
                return
            at += len(line)
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield number, Unreadable("not UTF-8", f"byte {error.start} of the line")
            except (ValueError, RecursionError) as error:
                yield number, Unreadable("not JSON", str(error))


def _read_parquet(
    path: Path, name: str, columns: Columns, portion: Portion
) -> Iterator[tuple[int, Any]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: not Parquet: {error}") from None
    with file:
        used = _used(name, file.schema_arrow.names, columns)
        groups = range(portion.start, int(min(portion.stop, file.num_row_groups)))
        batches = file.iter_batches(columns=used, row_groups=groups) if groups else ()
        yield from _rows(name, batches, used, portion.first)


def _read_arrow(
    path: Path, name: str, columns: Columns, portion: Portion
) -> Iterator[tuple[int, Any]]:
    with pa.memory_map(str(path)) as source:
        is_stream = source.read(6) != b"ARROW1"
        source.seek(0)
        try:
            reader = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
            have = reader.schema.names
        except (OSError, ValueError, pa.ArrowException) as error:
            kind = "not Arrow" if is_stream else "damaged, or cut off"
            raise UserError(f"{name}: {kind}: {error}") from None
        used = _used(name, have, columns)
        if is_stream:
            batches = (
                batch
                for number, batch in enumerate(_to_the_end(source, reader))
                if portion.start <= number < portion.stop
            )
        else:
            stop = int(min(portion.stop, reader.num_record_batches))
            batches = (reader.get_batch(number) for number in range(portion.start, stop))
        yield from _rows(name, batches, used, portion.first)


def _to_the_end(source: Any, reader: Any) -> Iterator[Any]:
    """The batches of a stream that is whole.

    A stream that was cut between two batches reads as a shorter one; its end mark is missing.
    """
    end = source.tell()
    for batch in reader:
        end = source.tell()
        yield batch
    if source.tell() == end:
        raise pa.ArrowInvalid("it has no end mark: it was cut off")
    if source.tell() != source.size():
        raise pa.ArrowInvalid("more follows its end mark: it is not one file")


def _used(name: str, have: Sequence[str], columns: Columns) -> list[str]:
    """The columns to read, those that must be there found."""
    needed = [column for field, column in columns.items() if field in _REQUIRED or column != field]
    missing = [column for column in needed if column not in have]
    twice = [column for column in columns.values() if have.count(column) > 1]
    if twice:
        raise UserError(f"{name}: has more than one column {' and '.join(twice)}")
    if missing:
        close = [c for m in missing for c in difflib.get_close_matches(m, have, n=1, cutoff=0.5)]
        hint = f"; did you mean {' and '.join(dict.fromkeys(close))}?" if close else ""
        raise UserError(
            f"{name}: has no column {' or '.join(missing)}; it has {', '.join(have)}{hint} "
            "(the recipe's data.columns says what the fields are called)"
        )
    return [column for column in dict.fromkeys(columns.values()) if column in have]


def _rows(
    name: str, batches: Iterable[Any], used: Sequence[str], first: int
) -> Iterator[tuple[int, Any]]:
    number = first - 1
    try:
        for batch in batches:
            columns = {column: batch[column] for column in used}
            for column in columns.values():
                # Offsets that point outside would read foreign memory; text is judged row by row.
                as_bytes = _AS_BYTES.get(column.type)
                (column.view(as_bytes) if as_bytes else column).validate(full=True)
            for row in range(len(batch)):
                number += 1
                try:
                    yield number, {name: column[row].as_py() for name, column in columns.items()}
                except (ValueError, OverflowError) as error:
                    is_text = isinstance(error, UnicodeDecodeError)
                    cause = "not UTF-8" if is_text else "not readable"
                    yield number, Unreadable(cause, str(error))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: damaged behind row {number}: {error}") from None


_READERS = dict(zip(SUFFIXES, (_read_jsonl, _read_jsonl, _read_parquet, _read_arrow), strict=True))
