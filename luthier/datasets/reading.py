"""A file as a stream of examples, each row with what was found in it.

`Reading` says how rows become examples: by the keys of a known format, by a mapping of columns, by a
dataset_info entry, or by a format string. `Examiner` reads row by row and goes on after a bad one, for
reports; `read_examples` stops at the first, or passes bad ones over when that was asked for.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.datasets.compression import MAX_DECODED_BYTES
from luthier.datasets.containers import open_dataset
from luthier.datasets.entry_rows import entry_columns, read_by_entry
from luthier.datasets.examples import DatasetError, Example, Format, Issue
from luthier.datasets.findings import Findings, key_list
from luthier.datasets.format_strings import columns_in, fill, is_format_string
from luthier.datasets.formats import TELLING_KEYS, detect_format, read_example
from luthier.datasets.rows import MAX_ROWS, Row, parse_row
from luthier.spec import DatasetRequest, SourceFile
from luthier.spec.entry import DatasetEntry
from luthier.spec.request import FieldName

# After these the rest of the file would only repeat the same mistake.
_HOPELESS = frozenset({"format.multiline_json", "format.cr_newlines", "content.nul"})
_SAMPLE_SEED = 42


@dataclass(frozen=True)
class Reading:
    """How the rows of a file become examples.

    Attributes:
        columns: our field to the user's column; of the rows nothing else is read.
        entry: of dataset_info.json; excludes `columns`.
        format_string: a text with columns in braces; the rows' own format does not matter then.
        max_rows: only the first rows, good or bad.
        max_decoded_bytes: a file that holds more is refused, whatever its size as it is stored.
    """

    columns: Mapping[FieldName, str] | None = None
    entry: DatasetEntry | None = None
    format_string: str | None = None
    max_rows: int | None = None
    max_decoded_bytes: int = MAX_DECODED_BYTES

    @property
    def wanted_columns(self) -> frozenset[str]:
        """The columns of the user's file that matter."""
        if self.format_string is not None:
            named = {str(field): column for field, column in (self.columns or {}).items()}
            return frozenset(named.get(name, name) for name in columns_in(self.format_string))
        if self.entry is not None:
            return entry_columns(self.entry)
        return frozenset(self.columns.values()) if self.columns else TELLING_KEYS

    @property
    def is_plain(self) -> bool:
        """Whether the rows speak for themselves."""
        return self.columns is None and self.entry is None and self.format_string is None


PLAIN = Reading()
PLAIN_RULES = DatasetRequest()


def reading_of(source: SourceFile, rules: DatasetRequest = PLAIN_RULES) -> Reading:
    """How a file is read: by columns, its own before those of the rules; without any, by its entry."""
    columns = source.columns if source.columns is not None else rules.columns
    return Reading(
        columns=columns,
        entry=source.entry if columns is None else None,
        format_string=rules.template if rules.template and is_format_string(rules.template) else None,
        max_rows=rules.max_samples,
    )


@dataclass(frozen=True, slots=True)
class ExaminedRow:
    """One row.

    Attributes:
        line: on which it begins, from 1; in Parquet the number of the row.
        end: offset in the decoded file behind it.
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


class Examiner:
    """Reads the rows of one file, which all have the format of the first.

    Attributes:
        first: that format, and the line that told it.
    """

    def __init__(self, reading: Reading) -> None:
        self.first: tuple[Format, int] | None = None
        self._reading = reading

    def examine(self, row: Row) -> ExaminedRow:
        """Read one row.

        Raises:
            DatasetError: the mistake is one that every row behind it would share.
        """
        found, example, format_ = Findings(), None, None
        try:
            format_, example = self._read(parse_row(row), row.line, found)
        except DatasetError as error:
            if error.issue.code in _HOPELESS:
                raise
            found.errors.append(error.issue)
        # A mistake inside a row of several lines already knows its own.
        errors = tuple(issue if issue.line else issue.at(row.line) for issue in found.errors)
        warnings = tuple(issue.at(row.line) for issue in found.warnings)
        return ExaminedRow(row.line, row.end, row.is_last, format_, example, errors, warnings)

    def _read(
        self, value: Mapping[str, Any], line: int, found: Findings
    ) -> tuple[Format | None, Example | None]:
        reading = self._reading
        if reading.columns is not None:
            value = _mapped(value, reading, found)
        if found.errors:
            return None, None
        if reading.format_string is not None:
            return Format.TEXT, fill(reading.format_string, value, found)
        if reading.entry is not None:
            example = read_by_entry(value, reading.entry, found)
            return example.format if example else None, example
        format_ = detect_format(value, found)
        if format_ is None:
            return None, None
        self.first = self.first or (format_, line)
        if format_ is not self.first[0]:
            text = f"the row is {format_}, but line {self.first[1]} is {self.first[0]}; keep to one format"
            found.error("schema.mixed", "", text)
            return format_, None
        return format_, read_example(value, format_, found)


def read_examples(
    path: Path, reading: Reading = PLAIN, on_bad_row: Callable[[Issue], None] | None = None
) -> Iterator[tuple[int, Example]]:
    """The examples of a file, each with its line.

    Args:
        on_bad_row: is told the first mistake of every bad row, which is then passed over; without it the
            first bad row ends the reading.
    Raises:
        DatasetError: the first thing that is wrong, or something that no further row can be read after.
    """
    examiner = Examiner(reading)
    for row, times in _chosen_rows(path, reading):
        examined = examiner.examine(row)
        if examined.example is not None:
            for _ in range(times):
                yield examined.line, examined.example
        elif on_bad_row is None:
            raise DatasetError(examined.errors[0])
        else:
            on_bad_row(examined.errors[0])


def _chosen_rows(path: Path, reading: Reading) -> Iterator[tuple[Row, int]]:
    """The rows to read, each with how often it is to be used."""
    with open_dataset(path, reading.wanted_columns, reading.max_decoded_bytes) as dataset:
        rows = _counted(dataset.rows())
        if reading.entry is None or reading.entry.num_samples is None:
            yield from ((row, 1) for row in islice(rows, reading.max_rows))
            return
    yield from _sampled(path, reading, reading.entry.num_samples)


def _sampled(path: Path, reading: Reading, size: int) -> Iterator[tuple[Row, int]]:
    """`size` rows drawn as LLaMA-Factory does: each at most once while they last, then again at random.

    They come in the order of the file, and the same ones every time.
    """
    columns, limit = reading.wanted_columns, reading.max_decoded_bytes
    with open_dataset(path, columns, limit) as dataset:
        count = sum(1 for _ in _counted(dataset.rows()))
    chance = random.Random(_SAMPLE_SEED)
    drawn = Counter(chance.sample(range(count), min(size, count)))
    # One by one: a list of all of them would be as large as whoever wrote the entry likes.
    drawn.update(chance.choices(range(count))[0] for _ in range(size - count if count else 0))
    left = size if reading.max_rows is None else min(size, reading.max_rows)
    with open_dataset(path, columns, limit) as dataset:
        for index, row in enumerate(dataset.rows()):
            times = min(drawn[index], left)
            left -= times
            if times:
                yield row, times
            if left == 0:
                return


def _counted(rows: Iterator[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise DatasetError(Issue("dataset.too_large", f"the file has over {MAX_ROWS} rows; split it"))
        yield row


def _mapped(row: Mapping[str, Any], reading: Reading, found: Findings) -> dict[str, Any]:
    """The row under our names. What `columns` does not name is read only by a format string that asks."""
    columns = reading.columns or {}
    for field, column in columns.items():
        if column not in row:
            text = f"is missing, but columns gives it for {field}; the row has {key_list(row)}"
            found.error("columns.missing", column, text)
    named = {str(field): row[column] for field, column in columns.items() if column in row}
    return {**row, **named} if reading.format_string is not None else named
