"""A file as a stream of examples, each row with what was found in it.

`examine` goes on after a bad row, for reports; `read_examples` stops at the first, for preparation. Both hold
one row at a time and want one format in the whole file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.datasets.examples import DatasetError, Example, Format, Issue
from luthier.datasets.formats import Findings, detect_format, read_example
from luthier.datasets.rows import FileHead, RawRow, inspect, parse_row, read_rows

# After these the rest of the file would only repeat the same mistake.
_HOPELESS = frozenset({"format.multiline_json", "format.cr_newlines", "content.nul"})


@dataclass(frozen=True, slots=True)
class ExaminedRow:
    """One row.

    Attributes:
        line: on which it begins, from 1.
        end: offset in the file behind it.
        is_last: the file ends with it and without a line end.
        example: None when there are errors.
    """

    line: int
    end: int
    is_last: bool
    format: Format | None
    example: Example | None
    errors: tuple[Issue, ...]
    warnings: tuple[Issue, ...]


def examine(path: Path, head: FileHead) -> Iterator[ExaminedRow]:
    """Every row of a file, good or bad.

    Raises:
        DatasetError: the file cannot be read on: a row over 16 MiB, a broken array, rows spread over lines.
    """
    first: tuple[Format, int] | None = None
    for raw in read_rows(path, head):
        row = _examine_row(raw, first)
        if first is None and row.format is not None:
            first = (row.format, row.line)
        yield row


def read_examples(path: Path) -> Iterator[tuple[int, Example]]:
    """The examples of a file, each with its line.

    Raises:
        DatasetError: the first thing that is wrong.
    """
    for row in examine(path, inspect(path)):
        if row.example is None:
            raise DatasetError(row.errors[0])
        yield row.line, row.example


def _examine_row(raw: RawRow, first: tuple[Format, int] | None) -> ExaminedRow:
    found, example, format_ = Findings(), None, None
    try:
        value = parse_row(raw)
    except DatasetError as error:
        if error.issue.code in _HOPELESS:
            raise
        found.errors.append(error.issue)
    else:
        format_ = detect_format(value, found)
        if format_ is not None and first is not None and format_ is not first[0]:
            text = f"the row is {format_}, but line {first[1]} is {first[0]}; keep to one format in a file"
            found.error("schema.mixed", "", text)
        elif format_ is not None:
            example = read_example(value, format_, found)
    # A mistake inside a row of several lines already knows its own.
    errors = tuple(issue if issue.line else issue.at(raw.line) for issue in found.errors)
    warnings = tuple(issue.at(raw.line) for issue in found.warnings)
    return ExaminedRow(raw.line, raw.end, raw.is_last, format_, example, errors, warnings)
