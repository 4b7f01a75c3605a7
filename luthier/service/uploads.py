"""Files that come in parts: any number at once, in any order, over any of the API's processes.

Bytes of a part lie in storage before its row does, so whatever a row tells of is there. The order is told at
the end. An upload's row is locked while it is decided on: a part is added to a pending upload or not at all.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError, invalid, printable
from luthier.service.jobs import Caller
from luthier.tables import File, Upload, UploadPart

MAX_PART_BYTES = 64 << 20
MAX_PARTS = 10_000
_LIFE = timedelta(hours=1)
# What begins to be completed in time still needs its parts for a while.
PARTS_KEPT = timedelta(hours=1)


def begin(
    session: Session,
    caller: Caller,
    *,
    upload_id: str,
    filename: str,
    purpose: str,
    size_bytes: int,
    on_bad_row: str,
    file_expires_seconds: int | None,
    now: datetime,
) -> Upload:
    """An upload that waits for its parts."""
    upload = Upload(
        id=upload_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        filename=filename,
        purpose=purpose,
        size_bytes=size_bytes,
        on_bad_row=on_bad_row,
        file_expires_seconds=file_expires_seconds,
        status="pending",
        created_at=now,
        expires_at=now + _LIFE,
    )
    session.add(upload)
    session.flush()
    return upload


def status_of(upload: Upload, now: datetime) -> str:
    """`pending`, `completed`, `cancelled` or `expired`."""
    return "expired" if upload.status == "pending" and upload.expires_at <= now else upload.status


def require_pending(upload: Upload, *, now: datetime) -> None:
    """Raises LuthierError `upload_not_pending` for an upload that takes no more parts."""
    status = status_of(upload, now)
    if status != "pending":
        text = f"Upload {upload.id} is {status}: begin a new one with POST /v1/uploads"
        raise LuthierError(text, "upload_not_pending")


def add_part(
    session: Session,
    caller: Caller,
    upload_id: str,
    *,
    part_id: str,
    size_bytes: int,
    sha256: str,
    storage_key: str,
    now: datetime,
) -> UploadPart:
    """The row of a part whose bytes are in place."""
    upload = repository.get_upload(session, caller.project_id, upload_id, is_locked=True)
    require_pending(upload, now=now)
    query = select(func.count(), func.sum(UploadPart.size_bytes)).where(UploadPart.upload_id == upload.id)
    count, sent_bytes = session.execute(query).one()
    if count >= MAX_PARTS:
        raise invalid(f"Upload {upload.id} has {count} parts, and no more are taken: send larger ones")
    # Parts may have been sent again, but not any number of times.
    if (sent_bytes or 0) + size_bytes > 2 * upload.size_bytes:
        text = f"The parts of upload {upload.id} have over twice the {upload.size_bytes} bytes announced"
        raise LuthierError(f"{text}: complete it with those that make the file", "file_too_large", "data")
    part = UploadPart(
        id=part_id,
        upload_id=upload.id,
        project_id=upload.project_id,
        size_bytes=size_bytes,
        sha256=sha256,
        storage_key=storage_key,
        created_at=now,
    )
    session.add(part)
    session.flush()
    return part


def require_parts(session: Session, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """The parts that make the file, in its order.

    Raises:
        LuthierError: one of them is unknown or named twice, or they are not as long as was announced.
    """
    known = {part.id: part for part in repository.list_parts(session, upload)}
    unknown = next((part_id for part_id in part_ids if part_id not in known), None)
    if unknown is not None:
        text = (
            f"Upload {upload.id} has no part {printable(unknown)!r}: GET /v1/uploads/{upload.id} lists them"
        )
        raise invalid(text, "part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise invalid("'part_ids' names a part twice: name each once, in the order of the file", "part_ids")
    found = [known[part_id] for part_id in part_ids]
    size_bytes = sum(part.size_bytes for part in found)
    if size_bytes != upload.size_bytes:
        raise invalid(
            f"The parts have {size_bytes} bytes, and {upload.size_bytes} were announced: send what is "
            "missing, or name only the parts of this file",
            "part_ids",
        )
    return found


def is_completed(upload: Upload, part_ids: Sequence[str]) -> bool:
    """Whether an upload was completed before with just these parts."""
    return upload.status == "completed" and upload.part_ids == list(part_ids)


def complete(
    session: Session, upload: Upload, part_ids: Sequence[str], *, file_id: str, now: datetime
) -> list[str]:
    """End a locked upload with a file that its parts were made into.

    Returns:
        Storage keys of all its parts, whose bytes the caller removes after the commit.
    """
    require_pending(upload, now=now)
    keys = _forget_parts(session, upload)
    upload.status, upload.part_ids, upload.file_id = "completed", list(part_ids), file_id
    session.flush()
    return keys


def cancel(session: Session, upload: Upload, *, now: datetime) -> list[str]:
    """End a locked upload without a file; nothing happens to one that was cancelled before.

    Returns:
        Storage keys, as `complete`.
    """
    if upload.status == "cancelled":
        return []
    require_pending(upload, now=now)
    keys = _forget_parts(session, upload)
    upload.status = "cancelled"
    session.flush()
    return keys


def find_file(session: Session, upload: Upload) -> File | None:
    """What an upload has become, unless it was deleted since."""
    return session.get(File, upload.file_id) if upload.file_id else None


def _forget_parts(session: Session, upload: Upload) -> list[str]:
    parts = repository.list_parts(session, upload)
    for part in parts:
        session.delete(part)
    return [part.storage_key for part in parts]
