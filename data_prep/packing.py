"""Best-fit-decreasing packing: which pieces share a row. Pure functions on lengths.

Every piece goes into the fullest row that still has room for it, longest pieces first. Source:
Johnson et al., SIAM J. Comput. 3(4), 1974; for language models Ding et al., arXiv:2404.10830.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Divide pieces over rows; nothing is dropped, and the same lengths give the same rows.

    Args:
        lengths: Tokens of each piece, 1 to capacity.
        capacity: Tokens of a row.

    Returns:
        For each row the indices of its pieces, in the order in which they stand in it.

    Raises:
        ValueError: A piece is empty or longer than a row.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of by_room, ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise ValueError(f"piece {index} has {length} tokens, a row {capacity}")
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        rows[row].append(index)
        left = room - length
        if left:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(row)
    return rows


def efficiency(lengths: Sequence[int], num_rows: int, capacity: int) -> float:
    """Tokens over the room of all rows: 1.0 wastes nothing."""
    return sum(lengths) / (num_rows * capacity) if num_rows else 1.0
