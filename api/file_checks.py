"""The check of a file within a request: small files whole, of large ones the first megabyte.

Entered by `check_file`, at an upload and again when a file's rows are to be read in another way. What it
cannot read to its end within a request is left to the cpu queue.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.datasets.reading import PLAIN, Reading
from luthier.datasets.validate import check_head, failure_message, validate_file
from luthier.errors import LuthierError
from luthier.service.jobs import has_good_rows, is_of_unknown_form

# A small file that decodes to more than this is left to a worker.
MAX_DECODED_BYTES = 64 * 1024 * 1024
_TOO_LARGE = "dataset.decoded_too_large"
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
    """The report of a file that was read whole, and what is wrong with it; no report of a larger one.

    A file with mistakes is kept where its rows have keys that nobody has explained, and where it was asked to
    keep one with bad rows among good ones (`keeps_bad_rows`), or any with rows (`keeps_all`).

    Raises:
        LuthierError: `invalid_file`, with the first error's line and others as details.
    """
    is_small = path.stat().st_size <= whole_check_bytes
    if is_small:
        report = validate_file(path, filename, reading=replace(reading, max_decoded_bytes=MAX_DECODED_BYTES))
        is_small = _TOO_LARGE not in report.error_counts
    if not is_small:
        report = check_head(path, filename, reading=reading)
    shown = report.model_dump(mode="json")
    message = None if report.valid else failure_message(report)
    is_kept = (
        (keeps_all and report.row_count > 0)
        or (reading.is_plain and is_of_unknown_form(shown))
        or (keeps_bad_rows and has_good_rows(shown))
    )
    if message is not None and not is_kept:
        raise LuthierError(message, "invalid_file", "file", _details(shown))
    return (shown, message) if is_small else (None, None)


def _details(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"loc": error["path"], **{name: error[name] for name in ("line", "code", "message")}}
        for error in report["errors"][:MAX_DETAILS]
    ]
