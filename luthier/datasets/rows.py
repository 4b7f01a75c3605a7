"""The rows of a file: as bytes from JSON Lines and JSON arrays, as objects from CSV and Parquet.

`line_chunks` and `array_rows` stream JSON in constant memory; `parse_row` makes a row an object, or says
exactly why it is none. Lines end with LF alone: other line separators of Unicode are ordinary characters
inside JSON strings.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import orjson

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.json_errors import MAX_DEPTH, depth_of, duplicate_key, explain, too_deep
from luthier.errors import printable

MAX_ROW_BYTES = 16 * 1024 * 1024

_CHUNK_BYTES = 1024 * 1024
_JSON_TYPES = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list"}
_ELEMENT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR_END = re.compile(rb"[,\]\s]")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row, not parsed.

    Attributes:
        line: on which it begins, from 1.
        end: offset in the decoded file behind its data.
        is_last: the file ends with it and without a line end.
    """

    line: int
    data: bytes
    end: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """One row of a table.

    Attributes:
        line: on which it begins, from 1; in Parquet the number of the row.
        value: its cells by column.
        end: decoded bytes up to its end.
        issue: why it cannot be used, when `value` is not what was written.
    """

    line: int
    value: dict[str, Any]
    end: int
    issue: Issue | None = None
    is_last: bool = False


Row = RawRow | ParsedRow


@dataclass(frozen=True, slots=True)
class LineChunk:
    """Whole lines, about a MiB of them.

    Attributes:
        line: number of the first, from 1.
        start: offset in the decoded file.
        is_last: the last line has no line end.
    """

    line: int
    data: bytes
    start: int
    is_last: bool


def line_chunks(file: IO[bytes], offset: int) -> Iterator[LineChunk]:
    """The lines of a file from where it stands; `offset` is where that is.

    Raises:
        DatasetError: a line is over 16 MiB; nothing behind that is read.
    """
    line, rest = 1, b""
    while piece := file.read(_CHUNK_BYTES):
        cut = piece.find(b"\n") + 1
        if len(rest) + (cut or len(piece)) > MAX_ROW_BYTES:
            raise DatasetError(_too_large(line))
        cut = piece.rfind(b"\n") + 1
        data, rest = (rest + piece[:cut], piece[cut:]) if cut else (b"", rest + piece)
        if data:
            yield LineChunk(line, data, offset, is_last=False)
            line, offset = line + data.count(b"\n"), offset + len(data)
    if rest:
        yield LineChunk(line, rest, offset, is_last=True)


def rows_of(chunk: LineChunk) -> Iterator[RawRow]:
    """The rows of a chunk, blank lines left out."""
    end = chunk.start
    for number, data in enumerate(chunk.data.split(b"\n"), start=chunk.line):
        end += len(data) + 1
        if data and not data.isspace():
            yield RawRow(number, data, end, chunk.is_last)


def parse_row(row: Row) -> dict[str, Any]:
    """The object of a row.

    Raises:
        DatasetError: it is not JSON that every reader understands alike, or not an object.
    """
    if isinstance(row, ParsedRow):
        if row.issue is not None:
            raise DatasetError(row.issue)
        return row.value
    try:
        value = orjson.loads(row.data)
    except orjson.JSONDecodeError as error:
        raise DatasetError(explain(row.data, line=row.line, is_last=row.is_last)) from error
    # Counting brackets is far cheaper than following them, and few rows have so many.
    if row.data.count(b"{") + row.data.count(b"[") > MAX_DEPTH and (depth := depth_of(row.data)) > MAX_DEPTH:
        raise DatasetError(too_deep(depth).at(row.line))
    if b"\\u0000" in row.data and _holds_nul(value):
        raise DatasetError(Issue("content.nul_escape", "a string holds \\u0000; remove it", line=row.line))
    if (key := _repeated_key(row.data, value)) is not None:
        text = f"the key '{printable(key, 40)}' appears twice in one object; keep one of them"
        raise DatasetError(Issue("json.duplicate_key", text, line=row.line))
    if not isinstance(value, dict):
        text = f'the row is {type_name(value)}; each row is an object, such as {{"messages": [...]}}'
        raise DatasetError(Issue("row.not_object", text, line=row.line))
    return value


def type_name(value: object) -> str:
    """What a JSON value is, in words."""
    return "null" if value is None else _JSON_TYPES.get(type(value), "an object")


def _too_large(line: int) -> Issue:
    text = "the row is over 16 MiB; is a line end missing? Split the row into several"
    return Issue("row.too_large", text, line=line)


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
        raise DatasetError(_too_large(window.line))
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
    return issue if window.is_at_end or issue.code != "json.truncated" else _too_large(window.line)


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_holds_nul(item) for item in value)


def _repeated_key(data: bytes, value: Any) -> str | None:
    """A key that an object of the row has twice, of which the parser kept the last; None where there is none.

    A key takes two quotation marks, so the bytes of a row with a lost one hold more of them than its value
    needs. Only such a row is parsed again.
    """
    if data.count(b'"') == _quote_count(value) and b"\\u0022" not in data:
        return None
    return duplicate_key(data)


def _quote_count(value: Any) -> int:
    """Quotation marks that it takes to write a value, when those inside strings are written as \\"."""
    if isinstance(value, str):
        return 2 + value.count('"')
    if isinstance(value, dict):
        return sum(2 + key.count('"') + _quote_count(item) for key, item in value.items())
    return sum(map(_quote_count, value)) if isinstance(value, list) else 0
