"""A file as a stream of examples, each row with what was found in it.

`examine` goes on after a bad row, for reports; `read_examples` stops at the first, for preparation. Both hold
one row at a time and want one format in the whole file.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.datasets.examples import DatasetError, Example, Format, Issue
from luthier.datasets.formats import Findings, detect_format, read_example
from luthier.datasets.rows import FileHead, RawRow, inspect, parse_row, read_rows
from luthier.spec import DatasetEntry

# After these the rest of the file would only repeat the same mistake.
_HOPELESS = frozenset({"format.multiline_json", "format.cr_newlines", "content.nul"})

_PLACE = re.compile(r"\{([A-Za-z_][\w .-]*)\}")


@dataclass(frozen=True)
class Reading:
    """How the rows of a file become examples.

    Attributes:
        columns: our field to the user's column.
        entry: excludes `columns`.
        format_string: `DatasetRequest.template` where it is one.
        max_rows: only the first so many rows.
    """

    columns: Mapping[str, str] | None = None
    entry: DatasetEntry | None = None
    format_string: str | None = None
    max_rows: int | None = None


# Rows as their own keys tell, all of them.
WHOLE_ROWS = Reading()


def is_format_string(template: str) -> bool:
    """Whether a template has a column in braces; else it is a name."""
    return _PLACE.search(template) is not None


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


def examine(path: Path, head: FileHead, reading: Reading = WHOLE_ROWS) -> Iterator[ExaminedRow]:
    """Every row of a file, good or bad.

    Raises:
        DatasetError: the file cannot be read on: a row over 16 MiB, a broken array, rows spread over lines.
    """
    first: tuple[Format, int] | None = None
    for raw in read_rows(path, head):
        row = _examine_row(raw, first, reading)
        if first is None and row.format is not None:
            first = (row.format, row.line)
        yield row


def read_examples(
    path: Path, reading: Reading = WHOLE_ROWS, on_bad_row: Callable[[Issue], None] | None = None
) -> Iterator[tuple[int, Example]]:
    """The examples of a file, each with its line.

    Args:
        on_bad_row: told what is wrong with a row, which is then passed over; None to stop at the first.
    Raises:
        DatasetError: the first thing that is wrong, or a file that cannot be read on.
    """
    for row in itertools.islice(examine(path, inspect(path), reading), reading.max_rows):
        if row.example is not None:
            yield row.line, row.example
        elif on_bad_row is None:
            raise DatasetError(row.errors[0])
        else:
            on_bad_row(row.errors[0])


def _examine_row(raw: RawRow, first: tuple[Format, int] | None, reading: Reading) -> ExaminedRow:
    found, example, format_ = Findings(), None, None
    try:
        value = parse_row(raw)
    except DatasetError as error:
        if error.issue.code in _HOPELESS:
            raise
        found.errors.append(error.issue)
    else:
        if reading.columns:
            value = {field: value[column] for field, column in reading.columns.items() if column in value}
        if reading.format_string is not None:
            format_, example = Format.TEXT, _formatted(value, reading.format_string, found)
        else:
            format_ = detect_format(value, found)
        if (
            reading.format_string is None
            and format_ is not None
            and first is not None
            and format_ is not first[0]
        ):
            text = f"the row is {format_}, but line {first[1]} is {first[0]}; keep to one format in a file"
            found.error("schema.mixed", "", text)
        elif reading.format_string is None and format_ is not None:
            example = read_example(value, format_, found)
    # A mistake inside a row of several lines already knows its own.
    errors = tuple(issue if issue.line else issue.at(raw.line) for issue in found.errors)
    warnings = tuple(issue.at(raw.line) for issue in found.warnings)
    return ExaminedRow(raw.line, raw.end, raw.is_last, format_, example, errors, warnings)


def _formatted(row: Mapping[str, object], template: str, found: Findings) -> Example | None:
    """A row as a format string writes it: its own words as they are, the row's as plain text."""
    pieces: list[tuple[str, bool]] = []
    for index, part in enumerate(_PLACE.split(template)):
        if index % 2 == 0:
            pieces.append((part, True))
        elif part.endswith("_token") and part not in row:
            pieces.append((f"{{{part}}}", True))
        elif isinstance(value := row.get(part), str):
            pieces.append((value, False))
        else:
            found.error("text.column", part, "is not a text in this row; the format string names it")
    return None if found.errors else Example(Format.TEXT, (), text=tuple(pieces))
