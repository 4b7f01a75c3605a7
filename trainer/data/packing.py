"""Several examples in one row of fixed capacity, so that little of a batch is padding.

Best-fit decreasing over all rows of an epoch: the longest first, each into the fullest row that still has
room for it. It needs at most 11/9 of the fewest rows possible, plus a constant: Johnson et al. 1974,
"Worst-case performance bounds for simple one-dimensional packing algorithms", SIAM J. Comput. 3(4). For
training data: Ding et al. 2024, arXiv 2404.10830.
"""

from bisect import bisect_left, insort

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Put examples into as few rows as best-fit decreasing finds.

    Args:
        lengths: tokens of each example, int [n], >= 1; of equal ones the first goes first.
        capacity: tokens of a row, >= 1; an example that is longer has a row to itself.
    Returns:
        The examples of each row by index, int64, in the order in which rows were begun; O(n log n).
    """
    shelf = _Shelf(capacity)
    sizes = np.minimum(lengths, capacity).tolist()
    for index in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        shelf.put(index, sizes[index])
    return [np.array(row, dtype=np.int64) for row in shelf.rows]


class _Shelf:
    """Rows by the room that is left in them; there are at most `capacity` kinds of room."""

    def __init__(self, capacity: int) -> None:
        self.rows: list[list[int]] = []
        self._capacity = capacity
        self._rooms: list[int] = []
        self._by_room: dict[int, list[int]] = {}

    def put(self, index: int, size: int) -> None:
        """Into the fullest row with room for `size`, or into a new one."""
        room, row = self._take(size)
        self.rows[row].append(index)
        self._give(room - size, row)

    def _take(self, size: int) -> tuple[int, int]:
        at = bisect_left(self._rooms, size)
        if at == len(self._rooms):
            self.rows.append([])
            return self._capacity, len(self.rows) - 1
        room = self._rooms[at]
        rows = self._by_room[room]
        row = rows.pop()
        if not rows:
            del self._by_room[room], self._rooms[at]
        return room, row

    def _give(self, room: int, row: int) -> None:
        if room == 0:
            return
        if room not in self._by_room:
            insort(self._rooms, room)
            self._by_room[room] = []
        self._by_room[room].append(row)
