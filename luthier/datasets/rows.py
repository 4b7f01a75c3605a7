"""The rows of a file: as bytes from JSON Lines and JSON arrays, as objects from CSV and Parquet.

`line_chunks` streams JSON Lines in constant memory; `parse_row` makes a row an object, or says exactly why it
is none. Lines end with LF alone: other line separators of Unicode are ordinary characters
inside JSON strings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import orjson

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.json_errors import MAX_DEPTH, depth_of, duplicate_key, explain, too_deep
from luthier.errors import printable

MAX_ROW_BYTES = 16 * 1024 * 1024
MAX_ROWS = 50_000_000

_CHUNK_BYTES = 1024 * 1024
_JSON_TYPES = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list"}


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
            raise DatasetError(row_too_large(line))
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
        if _holds_nul(row.value):
            raise DatasetError(Issue("content.nul_escape", "a string holds a NUL; remove it", line=row.line))
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


def row_too_large(line: int) -> Issue:
    """What is said of a row that is over 16 MiB."""
    text = "the row is over 16 MiB; is a line end missing? Split the row into several"
    return Issue("row.too_large", text, line=line)


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
