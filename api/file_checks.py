"""The check of a file within a request: a small text whole, of a large one the first megabyte.

Of Parquet and of packed files only the first bytes are looked at here. A small one may ask for gigabytes
while it is decoded, so its rows are read in a child whose memory is limited.
"""

from pathlib import Path
from typing import Any

from luthier.datasets.containers import is_plain_text
from luthier.datasets.reading import PLAIN, Reading
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

    A file with mistakes is kept where its rows have keys that nobody has explained, and where it was asked to
    keep one with bad rows among good ones (`keeps_bad_rows`), or any with rows (`keeps_all`).

    Raises:
        LuthierError: the code of the first error (most are `invalid_file`), its line, others as details.
    """
    report = check_head(path, filename, reading=reading)
    is_small = path.stat().st_size <= whole_check_bytes
    is_read_here = is_small and is_plain_text(report.container, report.compression)
    if is_read_here:
        report = validate_file(path, filename, reading=reading)
    shown = report.model_dump(mode="json")
    message = None if report.valid else failure_message(report)
    is_kept = (
        (keeps_all and report.row_count > 0)
        or (reading.is_plain and is_of_unknown_form(shown))
        or (keeps_bad_rows and has_good_rows(shown))
    )
    if message is not None and not is_kept:
        raise LuthierError(message, code_of_finding(report.errors[0].code), "file", _details(shown))
    return (shown, message) if is_read_here else (None, None)


def _details(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"loc": error["path"], **{name: error[name] for name in ("line", "code", "message")}}
        for error in report["errors"][:MAX_DETAILS]
    ]
