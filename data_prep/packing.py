"""Best-fit-decreasing packing: which pieces share a row. Pure functions on lengths.

Every piece goes into the fullest row that still has room for it, longest pieces first. Source:
Johnson et al., SIAM J. Comput. 3(4), 1974; for language models Ding et al., arXiv:2404.10830.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Lengths = Sequence[int] | npt.NDArray[np.int64]


def pack(lengths: Lengths, capacity: int) -> list[list[int]]:
    """Divide pieces over rows; nothing is dropped, and the same lengths give the same rows.

    Args:
        lengths: Tokens of each piece, 1 to capacity.
        capacity: Tokens of a row.

    Returns:
        For each row the indices of its pieces, in the order in which they stand in it.

    Raises:
        ValueError: A piece is empty or longer than a row.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    for index in np.flatnonzero((lengths < 1) | (lengths > capacity))[:1]:
        raise ValueError(f"piece {index} has {lengths[index]} tokens, a row {capacity}")
    order = np.argsort(-lengths, kind="stable")
    row_of = np.array(_rows_of(lengths[order], capacity), dtype=np.int64)
    by_row = np.argsort(row_of, kind="stable")
    pieces = order[by_row].tolist()
    bounds = [0, *np.cumsum(np.bincount(row_of)).tolist()]
    return [pieces[start:stop] for start, stop in pairwise(bounds)]


def _rows_of(lengths: npt.NDArray[np.int64], capacity: int) -> list[int]:
    """The row of each piece, longest first; pieces of one length are placed many at a time.

    The row with the least room that suffices has the least still when a piece is in it, as long
    as it suffices: so it takes as many as fit before the next row is looked at.
    """
    row_of: list[int] = []
    num_rows = 0
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of by_room, ascending

    def put(rows: list[int], room: int) -> None:
        if rows and room:
            if room not in by_room:
                by_room[room] = []
                insort(rooms, room)
            by_room[room] += rows

    sizes, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            place = bisect_left(rooms, length)
            room = rooms[place] if place < len(rooms) else capacity
            each = room // length
            wanted = -(-left // each)
            if place == len(rooms):
                rows = list(range(num_rows, num_rows + wanted))
                num_rows += wanted
            else:
                stack = by_room[room]
                rows = stack[: -wanted - 1 : -1]
                del stack[-wanted:]
                if not stack:
                    del by_room[room], rooms[place]
            placed = min(left, each * len(rows))
            row_of += rows if each == 1 else [row for row in rows for _ in range(each)][:placed]
            put(rows[:-1], room - each * length)
            put(rows[-1:], room - (placed - each * (len(rows) - 1)) * length)
            left -= placed
    return row_of
