"""The rows of a file as bytes: JSON Lines, or one JSON array, told apart by the first character.

`inspect` looks at the first bytes and refuses what is empty, binary or UTF-16; `read_rows` streams the rows
with their line numbers in constant memory; `parse_row` makes one of them an object. Lines end with LF alone:
other line separators of Unicode are ordinary characters inside JSON strings.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.json_errors import MAX_DEPTH, depth_of, explain, too_deep

MAX_ROW_BYTES = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096
_CHUNK_BYTES = 256 * 1024
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive (or an Office document)",
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"7z\xbc\xaf": "a 7z archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
    b"GGUF": "a GGUF model",
    **{bytes([0x80, protocol]): "a Python pickle" for protocol in range(2, 6)},
}
_UTF32_16 = {
    b"\xff\xfe\0\0": "UTF-32 LE",
    b"\0\0\xfe\xff": "UTF-32 BE",
    b"\xff\xfe": "UTF-16 LE",
    b"\xfe\xff": "UTF-16 BE",
}
_JSON_TYPES = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list"}
_ELEMENT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR_END = re.compile(rb"[,\]\s]")


@dataclass(frozen=True)
class FileHead:
    """What the first bytes of a file tell."""

    size_bytes: int
    has_bom: bool
    is_array: bool


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row, not parsed.

    Attributes:
        line: on which it begins, from 1.
        end: offset in the file behind its data.
        is_last: the file ends with it and without a line end.
    """

    line: int
    data: bytes
    end: int
    is_last: bool


def inspect(path: Path) -> FileHead:
    """Look at the first bytes of a file.

    Raises:
        DatasetError: the file is empty, binary, or not in UTF-8 but in UTF-16 or UTF-32.
    """
    size = path.stat().st_size
    if size == 0:
        raise DatasetError(Issue("dataset.empty", "the file has 0 bytes"))
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise DatasetError(
                Issue("format.magic_mismatch", f"the file is {name}; upload JSON Lines as text")
            )
    if (encoding := _wide_encoding(head)) is not None:
        raise DatasetError(Issue("encoding.utf16", f"the file is {encoding}; save it as UTF-8"))
    has_bom = head.startswith(_BOM)
    is_array = head.removeprefix(_BOM).lstrip().startswith(b"[")
    return FileHead(size, has_bom, is_array)


def read_rows(path: Path, head: FileHead) -> Iterator[RawRow]:
    """The rows of a file, blank lines left out.

    Raises:
        DatasetError: a row is over 16 MiB, or an array is broken between its rows.
    """
    with path.open("rb") as file:
        start = len(_BOM) if head.has_bom else 0
        file.seek(start)
        yield from _array_rows(file, start) if head.is_array else _line_rows(file, start)


def parse_row(row: RawRow) -> dict[str, Any]:
    """The object of a row.

    Raises:
        DatasetError: it is not JSON that every reader understands alike, or not an object.
    """
    try:
        value = orjson.loads(row.data)
    except orjson.JSONDecodeError as error:
        raise DatasetError(explain(row.data, line=row.line, is_last=row.is_last)) from error
    # Counting brackets is far cheaper than following them, and few rows have so many.
    if row.data.count(b"{") + row.data.count(b"[") > MAX_DEPTH and (depth := depth_of(row.data)) > MAX_DEPTH:
        raise DatasetError(too_deep(depth).at(row.line))
    if b"\\u0000" in row.data and _holds_nul(value):
        raise DatasetError(Issue("content.nul_escape", "a string holds \\u0000; remove it", line=row.line))
    if not isinstance(value, dict):
        text = f'the row is {type_name(value)}; each row is an object, such as {{"messages": [...]}}'
        raise DatasetError(Issue("row.not_object", text, line=row.line))
    return value


def type_name(value: object) -> str:
    """What a JSON value is, in words."""
    return "null" if value is None else _JSON_TYPES.get(type(value), "an object")


def _wide_encoding(head: bytes) -> str | None:
    for mark, name in _UTF32_16.items():
        if head.startswith(mark):
            return name
    # JSON begins with an ASCII character; in UTF-16 without a mark it has a NUL before or behind it.
    if head[1:2] == b"\0" and head[:1] in b"{[":
        return "UTF-16 LE"
    return "UTF-16 BE" if head[:1] == b"\0" and head[1:2] in (b"{", b"[") else None


def _line_rows(file: IO[bytes], offset: int) -> Iterator[RawRow]:
    number = 0
    while data := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        offset += len(data)
        if len(data) > MAX_ROW_BYTES:
            raise DatasetError(_too_large(number))
        if not data.isspace():
            yield RawRow(number, data, offset, is_last=not data.endswith(b"\n"))


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


def _array_rows(file: IO[bytes], offset: int) -> Iterator[RawRow]:
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
