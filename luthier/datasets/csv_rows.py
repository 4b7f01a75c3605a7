"""The rows of a CSV file: comma, double quotes, UTF-8, a header, and every row as wide as the header.

Python's own reader does the splitting, in its strict mode; lines are fed to it one by one, checked and
decoded, so that a mistake is told with its line and a quote that is left open cannot swallow the file.
"""

import csv
from collections.abc import Collection, Iterator
from typing import IO

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.json_errors import not_utf8
from luthier.datasets.rows import MAX_ROW_BYTES, ParsedRow
from luthier.errors import printable

MAX_COLUMNS = 1000

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def looks_like_csv(head: bytes, columns: Collection[str]) -> bool:
    """Whether the first line of a text is a header: several names, or one of those that are looked for."""
    line = head.replace(b"\r", b"\n").split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if line.startswith(('"', "'")) and line.endswith(line[0]) and line.count(line[0]) == 2:
        line = line[1:-1]
    return line in columns or any(mark in line for mark in (",", *_DELIMITERS))


def csv_rows(file: IO[bytes]) -> Iterator[ParsedRow]:
    """The rows behind the header, blank lines left out. A row of another width has an `issue`.

    Raises:
        DatasetError: the header cannot be used, a row is not UTF-8, over 16 MiB or has a NUL, or the quotes
            are broken, so that nobody knows where the next row begins.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(file)
    records = _records(lines)
    header = next(records, None)
    if header is None:
        raise DatasetError(Issue("dataset.no_rows", "the file has no rows: all of its lines are blank"))
    names = _checked_header(*header)
    for line, cells in records:
        issue = None if len(cells) == len(names) else _ragged(line, len(cells), len(names))
        yield ParsedRow(line, dict(zip(names, cells, strict=False)), lines.offset, issue)


class _Lines:
    """The lines of a file as text, for the csv module to pull.

    Attributes:
        number: of the last line given, from 1.
        offset: decoded bytes up to its end.
        first: number of the first line of the record that is being read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.number = self.offset = self._record_bytes = 0
        self.first = 1

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        data = self._file.readline(MAX_ROW_BYTES + 1)
        if not data:
            raise StopIteration
        self.number += 1
        self.offset += len(data)
        self._record_bytes += len(data)
        if self._record_bytes > MAX_ROW_BYTES:
            raise DatasetError(_too_large(self.first))
        return self._decoded(data)

    def begin_record(self) -> None:
        self.first, self._record_bytes = self.number + 1, 0

    def _decoded(self, data: bytes) -> str:
        if (at := data.find(b"\0")) >= 0:
            text = f"NUL byte at byte {at + 1}; is this a binary or a UTF-16 file?"
            raise DatasetError(Issue("content.nul", text, line=self.number))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(not_utf8(data, error).at(self.number)) from error


def _records(lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with its first line."""
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DatasetError(_broken(str(error), lines.first)) from error
        if cells:
            yield lines.first, cells


def _broken(error: str, line: int) -> Issue:
    if "unexpected end of data" in error:
        return Issue("csv.unterminated_quote", "a quote that opens in this row is never closed", line=line)
    if "field larger" in error:
        return _too_large(line)
    if "new-line character" in error:
        return Issue("format.cr_newlines", "lines end with CR alone; save the file with LF line ends")
    text = 'text follows a closing quote; write "" for a quote inside a quoted cell'
    return Issue("csv.quote", text, line=line)


def _too_large(line: int) -> Issue:
    return Issue(
        "csv.field_too_large",
        "the row is over 16 MiB; is a quote left open, or a line end missing?",
        line=line,
    )


def _checked_header(line: int, names: list[str]) -> list[str]:
    if len(names) == 1:
        for mark, words in _DELIMITERS.items():
            if mark in names[0]:
                shown = printable(names[0], 60)
                text = f"the header is one column, '{shown}', and looks separated by {words}; use commas"
                raise DatasetError(Issue("csv.delimiter", text, line=line))
    if len(names) > MAX_COLUMNS:
        text = f"the header has {len(names)} columns, over the limit of {MAX_COLUMNS}"
        raise DatasetError(Issue("csv.too_many_columns", text, line=line))
    names = [name.strip() for name in names]
    for number, name in enumerate(names, start=1):
        if not name:
            text = (
                f"column {number} has no name in the header; name it, or leave out an index when you export"
            )
            raise DatasetError(Issue("csv.header_blank", text, line=line))
        if names.index(name) < number - 1:
            text = f"the header has the column '{printable(name, 40)}' twice; rename one"
            raise DatasetError(Issue("csv.header_duplicate", text, line=line))
    return names


def _ragged(line: int, found: int, wanted: int) -> Issue:
    text = (
        f"{found} {'field' if found == 1 else 'fields'}, but the header has {wanted}; quote cells with commas"
    )
    return Issue("csv.column_count", text, line=line)
