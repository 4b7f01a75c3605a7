"""Curves in a terminal: a line of blocks beside other text, or a plot of braille dots with its axes."""

import math
from collections.abc import Sequence
from itertools import pairwise

_BLOCKS = "▁▂▃▄▅▆▇█"
# Bits of the eight dots of a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
_MARK = "●"

Points = Sequence[tuple[float, float]]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as blocks of eight heights, each the mean of its share where there are more than fit."""
    shares = _shares([value for value in values if math.isfinite(value)], width)
    if not shares:
        return ""
    low, high = min(shares), max(shares)
    span = high - low or 1.0
    return "".join(_BLOCKS[round((share - low) / span * (len(_BLOCKS) - 1))] for share in shares)


def plot(line: Points, marks: Points = (), *, width: int, height: int) -> list[str]:
    """Lines of text with a curve through `line`, a mark at each of `marks`, and both axes.

    Args:
        line, marks: x and y; x ascends.
        width, height: of all of it, in characters.
    """
    line, marks = _finite(line), _finite(marks)
    values = [y for _, y in (*line, *marks)]
    if not values:
        return []
    low, high = min(values), max(values)
    labels = [f"{value:.4g}" for value in (high, (low + high) / 2, low)]
    margin = max(map(len, labels))
    canvas = _Canvas(max(8, width - margin - 2), max(3, height - 2), [*line, *marks])
    canvas.draw(line)
    canvas.mark(marks)
    rows = canvas.rows()
    told = {0: labels[0], len(rows) // 2: labels[1], len(rows) - 1: labels[2]}
    shown = [f"{told.get(number, ''):>{margin}} ┤{row}" for number, row in enumerate(rows)]
    first, last = f"{canvas.left:g}", f"{canvas.right:g}"
    space = canvas.width - len(first)
    return [
        *shown,
        f"{'':>{margin}} └{'─' * canvas.width}",
        f"{'':>{margin}}  {first}{last:>{max(space, len(last) + 1)}}",
    ]


class _Canvas:
    """Dots of braille characters, two by four in each; y grows upwards."""

    def __init__(self, width: int, height: int, points: Points) -> None:
        self.width, self.height = width, height
        self.left, self.right = min(x for x, _ in points), max(x for x, _ in points)
        self._low, self._high = min(y for _, y in points), max(y for _, y in points)
        self._cells = [[0] * width for _ in range(height)]
        self._marks: set[tuple[int, int]] = set()

    def draw(self, points: Points) -> None:
        """A curve through points."""
        before: tuple[int, int] | None = None
        for point in points:
            x, y = self._dot(point)
            from_x, from_y = before or (x, y)
            for step in range(count := max(abs(x - from_x), abs(y - from_y), 1)):
                share = (step + 1) / count
                self._set(from_x + round((x - from_x) * share), from_y + round((y - from_y) * share))
            before = x, y

    def mark(self, points: Points) -> None:
        """A mark at each of some points."""
        for x, y in map(self._dot, points):
            self._marks.add((y // 4, x // 2))

    def rows(self) -> list[str]:
        return [
            "".join(
                _MARK if (row, column) in self._marks else chr(_BRAILLE + cell) if cell else " "
                for column, cell in enumerate(cells)
            ).rstrip()
            for row, cells in enumerate(self._cells)
        ]

    def _dot(self, point: tuple[float, float]) -> tuple[int, int]:
        """Where a point lies, counted from the left and from the top."""
        x = (point[0] - self.left) / (self.right - self.left or 1.0)
        y = (self._high - point[1]) / (self._high - self._low or 1.0)
        return round(x * (2 * self.width - 1)), round(y * (4 * self.height - 1))

    def _set(self, x: int, y: int) -> None:
        self._cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _shares(values: Sequence[float], count: int) -> list[float]:
    """At most so many means of neighbours."""
    if len(values) <= count:
        return list(values)
    edges = [round(number * len(values) / count) for number in range(count + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
