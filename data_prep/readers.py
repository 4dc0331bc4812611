"""Files of articles -> records with their numbers: JSONL, Parquet, Arrow.

A file that is cut or damaged is an error, never a shorter file. Memory is bounded by one batch of
rows. Knows nothing of what a record means but which of its columns are wanted.
"""

import codecs
import difflib
import json
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


def read_records(path: Path, name: str, columns: Columns) -> Iterator[tuple[int, Any]]:
    """The records of a file in its order, each with its number from 1.

    Args:
        path: A JSONL, Parquet or Arrow file.
        name: What the file is called in errors.
        columns: The columns that are wanted; those of title and description, and those that are
            not called as their field, must be there.

    Yields:
        A number, and a mapping by the file's own names, whatever else JSON holds, or Unreadable.

    Raises:
        UserError: The file lacks a column, or is damaged.
    """
    reader = _READERS[path.suffix]  # `pressroom/sources.py` has refused the others
    return reader(path, name, columns)


def _read_jsonl(path: Path, name: str, columns: Columns) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield number, Unreadable("not UTF-8", f"byte {error.start} of the line")
            except (ValueError, RecursionError) as error:
                yield number, Unreadable("not JSON", str(error))


def _read_parquet(path: Path, name: str, columns: Columns) -> Iterator[tuple[int, Any]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: not Parquet: {error}") from None
    with file:
        used = _used(name, file.schema_arrow.names, columns)
        yield from _rows(name, file.iter_batches(columns=used), used)


def _read_arrow(path: Path, name: str, columns: Columns) -> Iterator[tuple[int, Any]]:
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
            batches = _to_the_end(source, reader)
        else:
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        yield from _rows(name, batches, used)


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


def _rows(name: str, batches: Iterable[Any], used: Sequence[str]) -> Iterator[tuple[int, Any]]:
    number = 0
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
