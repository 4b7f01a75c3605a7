"""The check of a file within a request: a small one whole, of a large text the first megabyte.

Of Parquet and of packed files only the first bytes are looked at here: the rows of a small one are read by a
child, see `api.decoding`.
"""

from pathlib import Path
from typing import Any

from api import decoding
from luthier.datasets.containers import is_plain_text
from luthier.datasets.reading import PLAIN, Reading
from luthier.datasets.report import ValidationReport
from luthier.datasets.validate import check_head, failure_message, validate_file
from luthier.errors import LuthierError, code_of_finding
from luthier.service.jobs import has_good_rows, is_of_unknown_form

# Errors of a refused file that the answer lists; the first stands in its message, with the number of all.
MAX_DETAILS = 20


def check_file(
    path: Path,
    filename: str,
    whole_check_bytes: int,
    reading: Reading = PLAIN,
    *,
    keeps_bad_rows: bool = False,
    keeps_all: bool = False,
) -> tuple[dict[str, Any] | None, str | None]:
    """The report of a file that was read whole, and what is wrong with it; no report of any other.

    A small one that takes long to decode is among the others.

    A file with mistakes is kept where its rows have keys that nobody has explained, and where it was asked to
    keep one with bad rows among good ones (`keeps_bad_rows`), or any with rows (`keeps_all`).

    Raises:
        LuthierError: the code of the first error (most are `invalid_file`), its line, others as details.
    """
    head = check_head(path, filename, reading=reading)
    is_small = path.stat().st_size <= whole_check_bytes
    whole = _find_whole(path, filename, reading, head) if is_small else None
    report = whole or head
    shown = report.model_dump(mode="json")
    message = None if report.valid else failure_message(report)
    is_kept = (
        (keeps_all and report.row_count > 0)
        or (reading.is_plain and is_of_unknown_form(shown))
        or (keeps_bad_rows and has_good_rows(shown))
    )
    if message is not None and not is_kept:
        raise LuthierError(message, code_of_finding(report.errors[0].code), "file", _details(shown))
    return (shown, message) if whole else (None, None)


def _find_whole(
    path: Path, filename: str, reading: Reading, head: ValidationReport
) -> ValidationReport | None:
    """The report of a small file; None where its first bytes tell that nobody reads it, or it takes long."""
    if head.container is None:
        return None
    if is_plain_text(head.container, head.compression):
        return validate_file(path, filename, reading=reading)
    return decoding.find_report(path, filename, reading.entry)


def _details(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"loc": error["path"], **{name: error[name] for name in ("line", "code", "message")}}
        for error in report["errors"][:MAX_DETAILS]
    ]
