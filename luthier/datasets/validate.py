"""Validation of an uploaded file: read it whole, or its first megabyte, and report every kind of mistake.

A report names the first errors by line and counts the rest, stays below 64 KiB whatever the file holds, and
never repeats long values. Memory does not grow with the file. It knows no model: what a chat template refuses
shows in preparation.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from luthier.datasets.examples import DatasetError, Format, Issue
from luthier.datasets.reading import WHOLE_ROWS, ExaminedRow, Reading, examine
from luthier.datasets.rows import FileHead, inspect

HEAD_BYTES = 1024 * 1024
MAX_SHOWN_ERRORS = 20
_MAX_MESSAGE_CHARACTERS = 500
_MAX_LOC_CHARACTERS = 120
_PROGRESS_ROWS = 2000

# Called with the bytes read so far and the size of the file.
OnProgress = Callable[[int, int], None]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ReportedError(_Frozen):
    """One mistake. `line` is None for the file as a whole; `loc` is the place within the row."""

    line: int | None
    loc: str
    code: str
    message: str


class ReportedWarning(_Frozen):
    """One kind of oddity: how often, and where first."""

    code: str
    count: int
    message: str


class ValidationReport(_Frozen):
    """What was found in a file.

    Attributes:
        format: of the first row that tells one.
        row_count: rows read, good and bad.
        is_whole: False when only the head was looked at.
        error_count: of all errors; `errors` holds the first 20.
    """

    valid: bool
    filename: str
    size_bytes: int
    format: Format | None
    row_count: int
    is_whole: bool
    error_count: int
    errors: tuple[ReportedError, ...]
    warnings: tuple[ReportedWarning, ...]


def validate_file(
    path: Path, filename: str, on_progress: OnProgress | None = None, *, reading: Reading = WHOLE_ROWS
) -> ValidationReport:
    """Read a file whole and report on it.

    Args:
        filename: what the user calls it; stands in the report.
        on_progress: called every 2,000 rows.
    Raises:
        OSError: the file cannot be read.
    """
    tally = _Tally(filename, path.stat().st_size, is_whole=True)
    tally.count_all(path, lambda head: _with_progress(examine(path, head, reading), head, on_progress))
    return tally.report()


def check_head(path: Path, filename: str) -> ValidationReport:
    """Look at the first MiB of a large file; a last row that is cut there is not judged.

    Raises:
        OSError: the file cannot be read.
    """
    tally = _Tally(filename, path.stat().st_size, is_whole=False)
    tally.count_all(path, lambda head: _within_head(path, head))
    return tally.report()


def failure_message(report: ValidationReport) -> str:
    """One line on why a file cannot be used: its first error and the number of others."""
    others = report.error_count - 1
    if others < 1:
        return report.errors[0].message
    return f"{report.errors[0].message} (and {others} more {'error' if others == 1 else 'errors'})"


class _Tally:
    """Counts what is found while the rows go by."""

    def __init__(self, filename: str, size_bytes: int, *, is_whole: bool) -> None:
        self._filename, self._size_bytes, self._is_whole = filename, size_bytes, is_whole
        self._format: Format | None = None
        self._row_count = self._error_count = 0
        self._errors: list[Issue] = []
        self._warnings: dict[str, tuple[int, Issue]] = {}

    def count_all(self, path: Path, rows: Callable[[FileHead], Iterator[ExaminedRow]]) -> None:
        try:
            head = inspect(path)
            if head.has_bom:
                text = "the file begins with a byte order mark, which was passed over"
                self._warn(Issue("encoding.bom_stripped", text))
            for row in rows(head):
                self._count(row)
        except DatasetError as error:
            self._add_errors(error.issue)
            return
        if self._row_count == 0 and self._is_whole:
            empty = "its array is empty" if head.is_array else "all of its lines are blank"
            self._add_errors(Issue("dataset.no_rows", f"the file has no rows: {empty}"))

    def report(self) -> ValidationReport:
        return ValidationReport(
            valid=self._error_count == 0,
            filename=self._filename,
            size_bytes=self._size_bytes,
            format=self._format,
            row_count=self._row_count,
            is_whole=self._is_whole,
            error_count=self._error_count,
            errors=tuple(_reported(issue) for issue in self._errors),
            warnings=tuple(
                ReportedWarning(
                    code=code, count=count, message=_shortened(issue.message, _MAX_MESSAGE_CHARACTERS)
                )
                for code, (count, issue) in self._warnings.items()
            ),
        )

    def _count(self, row: ExaminedRow) -> None:
        self._row_count += 1
        self._format = self._format or row.format
        self._add_errors(*row.errors)
        for issue in row.warnings:
            self._warn(issue)

    def _add_errors(self, *issues: Issue) -> None:
        self._error_count += len(issues)
        self._errors += issues[: MAX_SHOWN_ERRORS - len(self._errors)]

    def _warn(self, issue: Issue) -> None:
        count, first = self._warnings.get(issue.code, (0, issue))
        self._warnings[issue.code] = (count + 1, first)


def _with_progress(
    rows: Iterator[ExaminedRow], head: FileHead, on_progress: OnProgress | None
) -> Iterator[ExaminedRow]:
    for number, row in enumerate(rows, start=1):
        yield row
        if on_progress is not None and number % _PROGRESS_ROWS == 0:
            on_progress(row.end, head.size_bytes)


def _within_head(path: Path, head: FileHead) -> Iterator[ExaminedRow]:
    for row in examine(path, head):
        if row.end > HEAD_BYTES or row.is_last:
            return
        yield row


def _reported(issue: Issue) -> ReportedError:
    return ReportedError(
        line=issue.line,
        loc=_shortened(issue.loc, _MAX_LOC_CHARACTERS),
        code=issue.code,
        message=_shortened(issue.message, _MAX_MESSAGE_CHARACTERS),
    )


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
