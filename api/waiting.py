"""Waiting for work on the cpu queue that a caller wants to know the outcome of.

A request waits some seconds in a thread of the pool and looks into the database; the work goes on when it
gives up, and whoever asks the same again finds it. Few may wait at once, so that the pool stays free.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.service import files
from luthier.status import FINAL, State
from luthier.storage import discard
from luthier.tables import File, Job

_LOOK_SECONDS = 0.05
_PLACES = threading.BoundedSemaphore(12)
# Why an errand fails, in the words that a call is answered with; all else is a fault of ours.
_CODES = {
    "invalid_training_file": "invalid_file",
    "invalid_validation_file": "invalid_file",
    "model_load_failed": "model_not_supported",
    "model_not_found": "model_not_found",
    "invalid_spec": "invalid_value",
}

Found = TypeVar("Found")


def result_of(installation: Installation, work_id: str) -> dict[str, Any]:
    """What an errand has found.

    Raises:
        LuthierError: it failed, or `not_done_yet`.
    """
    work = _wait(installation, lambda: _ended(installation, work_id))
    if work is None:
        raise not_done_yet()
    if work.state == State.SUCCEEDED:
        return work.result or {}
    if work.state == State.CANCELLED:
        raise LuthierError("The file was deleted meanwhile", "file_not_found", "file_id")
    message = work.error_message or "The file could not be looked at"
    raise LuthierError(message, _CODES.get(work.error_code or "", "server_error"), work.error_param)


def converted_file(installation: Installation, file_id: str) -> File | None:
    """A file that a conversion makes, once it is checked; None where that takes longer than a caller waits.

    Raises:
        LuthierError: `invalid_file`, with what is wrong; the file is gone then.
    """
    file = _wait(installation, lambda: _checked(installation, file_id))
    if file is None or file.status != "error":
        return file
    with installation.database.transaction() as session:
        keys = files.withdraw(session, file_id)
    discard(installation.storage, keys)
    raise _not_converted(file.status_details)


def not_done_yet() -> LuthierError:
    """The answer to who has waited long enough."""
    return LuthierError(
        "The answer is still being worked out: send the same again in some seconds, and it will be found",
        "not_done_yet",
    )


def _wait(installation: Installation, look: Callable[[], Found | None]) -> Found | None:
    """The first answer of `look` within the time that a caller waits, and at least one look."""
    found = look()
    if found is not None or not _PLACES.acquire(blocking=False):
        return found
    try:
        until = time.monotonic() + installation.settings.errand_wait_seconds
        while found is None and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            found = look()
    finally:
        _PLACES.release()
    return found


def _ended(installation: Installation, work_id: str) -> Job | None:
    with installation.database.reading() as session:
        work = session.get(Job, work_id)
    if work is None:
        raise not_done_yet()
    return work if State(work.state) in FINAL else None


def _checked(installation: Installation, file_id: str) -> File | None:
    with installation.database.reading() as session:
        file = session.get(File, file_id)
        refusal = files.find_refusal(session, file_id) if file is None else None
    if refusal is not None:
        raise _not_converted(refusal)
    if file is None:
        raise LuthierError("The new file was deleted while it was made", "file_not_found", "id")
    return file if file.status != "uploaded" else None


def _not_converted(why: str | None) -> LuthierError:
    return LuthierError(why or "The file cannot be converted", "invalid_file", "columns")
