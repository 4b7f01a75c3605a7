"""What validation found in a file: the first mistakes of each kind with their places, and counts of all.

A report is small enough for one event whatever the file holds, and repeats no long value and no secret.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from luthier.datasets.compression import Compression
from luthier.datasets.containers import Container
from luthier.datasets.distributions import Distribution
from luthier.datasets.examples import Format, Issue

MAX_SHOWN_OF_A_CODE = 100
MAX_SHOWN_LINES = 5

# All that is shown of errors, as ASCII; an event of 256 KiB must hold the whole report.
_MAX_SHOWN_BYTES = 128 * 1024
_MAX_MESSAGE_CHARACTERS = 500
_MAX_PATH_CHARACTERS = 120


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ReportedError(_Frozen):
    """One mistake. `line` is None for the file as a whole; `path` is the place within the row."""

    line: int | None
    path: str
    code: str
    message: str


class ReportedWarning(_Frozen):
    """One kind of oddity: how many rows have it, and the first lines."""

    code: str
    count: int
    message: str
    lines: tuple[int, ...] = ()


class RowStatistics(_Frozen):
    """Sizes of the good rows, in no language's terms.

    Attributes:
        messages: turns of a row; empty for texts.
        characters: of a turn's content, by role; `text` stands for rows that are one text.
    """

    messages: Distribution | None = None
    characters: dict[str, Distribution] = {}


class ValidationReport(_Frozen):
    """What was found in a file.

    Attributes:
        container, compression: None where the first bytes could not tell.
        format: of the first row that tells one.
        row_count: rows read, good and bad.
        line_count: lines up to the end of the last row read; None for Parquet.
        is_whole: False when only the head was looked at.
        error_count: of all errors; `error_counts` has it by code; `errors` holds the first 100 of each code,
            fewer where they would be too long for an event.
        tokens: what a model makes of the rows, where one was named.
    """

    valid: bool
    filename: str
    size_bytes: int
    container: Container | None
    compression: Compression | None
    format: Format | None
    row_count: int
    line_count: int | None
    is_whole: bool
    error_count: int
    error_counts: dict[str, int]
    errors: tuple[ReportedError, ...]
    warnings: tuple[ReportedWarning, ...]
    statistics: RowStatistics
    tokens: SerializeAsAny[BaseModel] | dict[str, Any] | None = None


def failure_message(report: ValidationReport) -> str:
    """One line on why a file cannot be used: its first error and the number of others."""
    others = report.error_count - 1
    if others < 1:
        return report.errors[0].message
    return f"{report.errors[0].message} (and {others} more {'error' if others == 1 else 'errors'})"


class Ledger:
    """Counts errors and warnings of a file, and keeps the first."""

    def __init__(self) -> None:
        self.error_counts: Counter[str] = Counter()
        self._errors: list[ReportedError] = []
        self._shown_bytes = 0
        self._warnings: dict[str, ReportedWarning] = {}

    def add_errors(self, *issues: Issue) -> None:
        """Count errors."""
        for issue in issues:
            self.error_counts[issue.code] += 1
            if self.error_counts[issue.code] <= MAX_SHOWN_OF_A_CODE:
                self._show(_reported(issue))

    def warn(self, issue: Issue) -> None:
        """Count a warning; the message of the first of its code stays."""
        self.add_warnings(issue.code, issue.message, [issue.line] if issue.line else [])

    def add_warnings(self, code: str, message: str, lines: Sequence[int]) -> None:
        """Count a warning for each line, or one for the file as a whole."""
        before = self._warnings.get(code)
        count, shown = (before.count, before.lines) if before else (0, ())
        kept = before.message if before else _shortened(message, _MAX_MESSAGE_CHARACTERS)
        self.set_warning(code, count + max(1, len(lines)), kept, (*shown, *lines[:MAX_SHOWN_LINES]))

    def set_warning(self, code: str, count: int, message: str, lines: tuple[int, ...] = ()) -> None:
        """Put a warning that was counted elsewhere."""
        self._warnings[code] = ReportedWarning.model_construct(
            code=code, count=count, message=message, lines=lines[:MAX_SHOWN_LINES]
        )

    @property
    def errors(self) -> tuple[ReportedError, ...]:
        return tuple(self._errors)

    @property
    def warnings(self) -> tuple[ReportedWarning, ...]:
        return tuple(self._warnings.values())

    def _show(self, error: ReportedError) -> None:
        size = len(f"{error.message}{error.path}".encode("ascii", "backslashreplace")) + 100
        # The first error is always shown: it is what people are told.
        if not self._errors or self._shown_bytes + size <= _MAX_SHOWN_BYTES:
            self._errors.append(error)
            self._shown_bytes += size


def _reported(issue: Issue) -> ReportedError:
    return ReportedError(
        line=issue.line,
        path=_shortened(issue.loc, _MAX_PATH_CHARACTERS),
        code=issue.code,
        message=_shortened(issue.message, _MAX_MESSAGE_CHARACTERS),
    )


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
