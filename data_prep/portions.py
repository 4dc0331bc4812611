"""Files of articles cut into portions that several workers read: the first thing they need to know.

Where a file is cut depends on its content alone. Knows nothing of what a record means.
"""

import os
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.readers import WHOLE, Portion

_BLOCK = 1 << 20


def portions(path: Path, target_bytes: int) -> list[Portion]:
    """Cut a file into parts of about so many bytes; one that is damaged is left whole.

    Whoever reads it then says what is wrong with it.
    """
    if path.suffix not in (".parquet", ".arrow"):
        return _of_jsonl(path, target_bytes)
    try:
        rows = _rows_of_parquet(path) if path.suffix == ".parquet" else _rows_of_arrow(path)
    except (OSError, ValueError, pa.ArrowException):
        return [WHOLE]
    # Row groups and batches of one file are about alike: so many of them make a portion.
    each = max(len(rows) * target_bytes // path.stat().st_size, 1)
    firsts = list(accumulate(rows, initial=1))
    return [
        Portion(start, min(start + each, len(rows)), firsts[start])
        for start in range(0, len(rows), each)
    ] or [WHOLE]


def _of_jsonl(path: Path, target_bytes: int) -> list[Portion]:
    size = path.stat().st_size
    with path.open("rb") as file:
        starts = [0]
        while starts[-1] + target_bytes < size:
            file.seek(starts[-1] + target_bytes)
            file.readline()  # to the end of the line in which it came down
            starts.append(file.tell())
        bounds = [start for start in starts if start < size] + [size]
        found, first = [], 1
        file.seek(0)
        for start, stop in pairwise(bounds):
            found.append(Portion(start, stop, first))
            first += sum(block.count(b"\n") for block in _blocks(file.fileno(), start, stop))
    return found or [WHOLE]


def _blocks(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    for at in range(start, stop, _BLOCK):
        yield os.pread(descriptor, min(_BLOCK, stop - at), at)


def _rows_of_parquet(path: Path) -> list[int]:
    with pq.ParquetFile(path) as file:
        groups = range(file.num_row_groups)
        return [file.metadata.row_group(number).num_rows for number in groups]


def _rows_of_arrow(path: Path) -> list[int]:
    with pa.memory_map(str(path)) as source:
        is_stream = source.read(6) != b"ARROW1"
        source.seek(0)
        if is_stream:
            return [batch.num_rows for batch in pa.ipc.open_stream(source)]
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
