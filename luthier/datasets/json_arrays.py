"""The rows of a file that is one JSON array, cut out one by one in constant memory.

Entered by `array_rows`. An element ends where its brackets close; whether it is JSON, the parser of rows
says, with the line that it begins on.
"""

import re
from collections.abc import Iterator
from typing import IO

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.json_errors import explain
from luthier.datasets.rows import MAX_ROW_BYTES, RawRow, row_too_large

_CHUNK_BYTES = 256 * 1024
_ELEMENT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR_END = re.compile(rb"[,\]\s]")


def array_rows(file: IO[bytes], offset: int) -> Iterator[RawRow]:
    """The elements of the one array that a file holds, from where it stands.

    Raises:
        DatasetError: a row is over 16 MiB, or the array is broken between its rows.
    """
    window = _Window(file, offset)
    window.next_character()
    window.take(1)
    first = window.next_character()
    while first != b"]":
        yield _take_element(window)
        if (between := window.next_character()) == b"]":
            break
        if between != b",":
            raise DatasetError(_broken_between(window, between))
        window.take(1)
        if (first := window.next_character()) == b"]":
            raise DatasetError(
                Issue("json.syntax", "remove the comma before the closing ]", line=window.line)
            )
    window.take(1)
    if window.next_character():
        raise DatasetError(Issue("json.extra_data", "more follows after the closing ]", line=window.line))


class _Window:
    """A view on a file that moves forward: what is next lies at `position` of `data`, on line `line`.

    It grows by doubling, so that a long row is not read again and again, and lets go of what was used.
    """

    def __init__(self, file: IO[bytes], offset: int) -> None:
        self.data, self.position, self.line, self.is_at_end = b"", 0, 1, False
        self._file, self._offset = file, offset

    @property
    def file_offset(self) -> int:
        return self._offset + self.position

    def size(self) -> int:
        return len(self.data) - self.position

    def grow(self) -> None:
        more = self._file.read(max(_CHUNK_BYTES, self.size()))
        self._offset += self.position
        self.data, self.position = self.data[self.position :] + more, 0
        self.is_at_end = not more

    def take(self, size: int) -> bytes:
        end = self.position + size
        taken = self.data[self.position : end]
        self.line += taken.count(b"\n")
        self.position = end
        return taken

    def next_character(self) -> bytes:
        """Move to the first byte that is not white space, and return it; empty at the end of the file."""
        while True:
            space = _SPACE.match(self.data, self.position)
            self.take(space.end() - self.position if space else 0)
            if self.size() or self.is_at_end:
                return self.data[self.position : self.position + 1]
            self.grow()


def _broken_between(window: _Window, found: bytes) -> Issue:
    if not found:
        text = "the file ends before the closing ]; was the upload or the export cut off?"
        return Issue("json.truncated", text, line=window.line)
    return Issue("json.syntax", "a comma is missing between two rows of the array", line=window.line)


def _take_element(window: _Window) -> RawRow:
    """Cut the next element out of the window."""
    while (size := _element_size(window.data, window.position)) is None:
        if window.is_at_end or window.size() > MAX_ROW_BYTES:
            raise DatasetError(_unclosed(window))
        window.grow()
    if size > MAX_ROW_BYTES:
        raise DatasetError(row_too_large(window.line))
    line, data = window.line, window.take(size)
    return RawRow(line, data, window.file_offset, is_last=False)


def _element_size(data: bytes, start: int) -> int | None:
    """Bytes of the array element that begins at `start`; None when its end is not in sight."""
    if data[start : start + 1] not in (b"{", b"[", b'"'):
        end = _SCALAR_END.search(data, start + 1)
        return end.start() - start if end else None
    depth = 0
    for match in _ELEMENT.finditer(data, start):
        token = match.group()
        if token == b'"':
            return None
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        if depth == 0:
            return match.end() - start
    return None


def _unclosed(window: _Window) -> Issue:
    """Why an element has no end: a mistake inside it, a cut file, or its size."""
    rest = window.data[window.position :]
    issue = explain(rest, line=window.line, is_last=window.is_at_end)
    return issue if window.is_at_end or issue.code != "json.truncated" else row_too_large(window.line)
