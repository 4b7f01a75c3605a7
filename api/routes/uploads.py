"""`/v1/uploads`: a file in parts, for what is large or comes over a line that breaks."""

import hashlib
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.accepting import accept, refuse_over_quota
from api.dependencies import REPLAYED, CallerOf, InstallationOf, body_of, mark_of
from api.multipart import UploadForm, announced_bytes, file_bytes, receive_part, require_sha256, shown_name
from api.openapi import PART_BODY, json_body
from api.schemas.uploads import (
    CompleteRequest,
    PartObject,
    UploadObject,
    UploadRequest,
    UploadWithParts,
    part_object,
    upload_object,
)
from luthier import repository
from luthier.database import CommitUnknownError, clock
from luthier.disk import require_room
from luthier.errors import LuthierError, invalid
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import idempotency, quotas, uploads
from luthier.service.idempotency import Mark
from luthier.service.jobs import Caller
from luthier.storage import Incoming, discard
from luthier.tables import Upload, UploadPart

# Each reads, hashes and writes up to a whole file in a thread of the pool that all calls share.
_JOINED_AT_ONCE = threading.BoundedSemaphore(4)
_GONE = "The parts of the upload are gone: begin a new one with POST /v1/uploads"

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
_read_complete = body_of(CompleteRequest)


@router.post("", operation_id="create_upload", openapi_extra=json_body(UploadRequest))
def create_upload(
    body: Annotated[UploadRequest, Depends(body_of(UploadRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> UploadObject:
    """Begin to send a file in parts. It is open for an hour."""
    largest = installation.settings.max_upload_bytes
    if body.bytes > largest:
        raise LuthierError(f"The file is larger than {largest} bytes", "file_too_large", "bytes")
    require_room(installation, body.bytes)
    refuse_over_quota(installation, caller, body.bytes)
    upload_id = new_id("upload_")

    def begin(session: Session) -> Upload:
        return uploads.begin(
            session,
            caller,
            upload_id=upload_id,
            filename=shown_name(body.filename),
            purpose=body.purpose,
            size_bytes=body.bytes,
            on_bad_row=body.on_bad_row,
            file_expires_seconds=body.expires_after.seconds if body.expires_after else None,
            now=clock(session),
        )

    upload = installation.database.run(begin, recall=lambda session: session.get(Upload, upload_id))
    return upload_object(upload, None, upload.created_at)


@router.get("/{upload_id}", operation_id="get_upload")
def get_upload(upload_id: str, installation: InstallationOf, caller: CallerOf) -> UploadWithParts:
    """An upload and the parts that have arrived, so that a client that broke off can go on.

    Compare the SHA-256 of a piece of the file with those of the parts to see whether it is there.
    """
    with installation.database.reading() as session:
        upload = repository.get_upload(session, caller.project_id, upload_id)
        shown = upload_object(upload, uploads.find_file(session, upload), clock(session))
        parts = [part_object(part) for part in repository.list_parts(session, upload)]
    return UploadWithParts(**dict(shown), parts=parts)


@router.post("/{upload_id}/parts", operation_id="create_upload_part", openapi_extra=PART_BODY)
async def create_upload_part(
    upload_id: str, request: Request, installation: InstallationOf, caller: CallerOf
) -> PartObject:
    """Send a part, of up to 64 MiB. Parts may be sent at once, in any order; a broken one is sent again."""
    await run_in_threadpool(require_room, installation, announced_bytes(request))
    await run_in_threadpool(_require_pending, installation, caller, upload_id)
    await run_in_threadpool(refuse_over_quota, installation, caller, file_bytes(request))
    async with contextmanager_in_threadpool(installation.storage.receive()) as incoming:
        await receive_part(request, incoming, installation.settings, uploads.MAX_PART_BYTES)
        if not incoming.size_bytes:
            raise invalid("'data' is empty: send at least one byte", "data")
        return part_object(await run_in_threadpool(_keep_part, installation, caller, upload_id, incoming))


@router.post(
    "/{upload_id}/complete", operation_id="complete_upload", openapi_extra=json_body(CompleteRequest)
)
def complete_upload(
    *,
    upload_id: str,
    body: Annotated[CompleteRequest, Depends(_read_complete)],
    mark: Annotated[Mark | None, Depends(mark_of(_read_complete))],
    response: Response,
    installation: InstallationOf,
    caller: CallerOf,
) -> UploadObject:
    """Make a file of the parts, in the order in which they are named; it is checked as any other.

    A file that is refused leaves the upload as it was. The same call again gives the same file, also without
    an `Idempotency-Key`; that one is refused where it came with another request.
    """
    if mark is not None and _is_known(installation, caller, mark):
        response.headers[REPLAYED] = "true"
    if (done := _find_completed(installation, caller, upload_id, body)) is not None:
        return done
    if not _JOINED_AT_ONCE.acquire(blocking=False):
        text = "Too many files are being put together now: send the same again in some seconds"
        raise LuthierError(text, "not_done_yet")
    try:
        _complete(installation, caller, upload_id, body, mark)
    except LuthierError:
        # The same call may have been quicker elsewhere, and has taken the parts.
        if (done := _find_completed(installation, caller, upload_id, body)) is None:
            raise
        return done
    finally:
        _JOINED_AT_ONCE.release()
    with installation.database.reading() as session:
        upload = repository.get_upload(session, caller.project_id, upload_id)
        return upload_object(upload, uploads.find_file(session, upload), clock(session))


@router.post("/{upload_id}/cancel", operation_id="cancel_upload")
def cancel_upload(upload_id: str, installation: InstallationOf, caller: CallerOf) -> UploadObject:
    """Give an upload up, and the room that its parts take; nothing happens to one that is cancelled."""
    keys: list[str] = []

    def cancel(session: Session) -> UploadObject:
        now = clock(session)
        upload = repository.get_upload(session, caller.project_id, upload_id, is_locked=True)
        keys[:] = uploads.cancel(session, upload, now=now)
        return upload_object(upload, None, now)

    def find_cancelled(session: Session) -> UploadObject | None:
        upload = repository.get_upload(session, caller.project_id, upload_id)
        return upload_object(upload, None, clock(session)) if upload.status == "cancelled" else None

    cancelled = installation.database.run(cancel, recall=find_cancelled)
    discard(installation.storage, keys)
    return cancelled


def _require_pending(installation: Installation, caller: Caller, upload_id: str) -> None:
    with installation.database.reading() as session:
        upload = repository.get_upload(session, caller.project_id, upload_id)
        uploads.require_pending(upload, now=clock(session))


def _find_completed(
    installation: Installation, caller: Caller, upload_id: str, body: CompleteRequest
) -> UploadObject | None:
    """The upload, when it was completed with just these parts."""
    with installation.database.reading() as session:
        upload = repository.get_upload(session, caller.project_id, upload_id)
        if not uploads.is_completed(upload, body.part_ids):
            return None
        return upload_object(upload, uploads.find_file(session, upload), clock(session))


def _is_known(installation: Installation, caller: Caller, mark: Mark) -> bool:
    """Whether the same request was carried out under its key before."""
    with installation.database.reading() as session:
        return idempotency.find(session, caller.project_id, mark, now=clock(session)) is not None


def _complete(
    installation: Installation, caller: Caller, upload_id: str, body: CompleteRequest, mark: Mark | None
) -> None:
    with installation.database.reading() as session:
        now = clock(session)
        upload = repository.get_upload(session, caller.project_id, upload_id)
        uploads.require_pending(upload, now=now)
        parts = uploads.require_parts(session, upload, body.part_ids)
    require_room(installation, upload.size_bytes)
    form = UploadForm(upload.filename, upload.purpose, upload.file_expires_seconds, upload.on_bad_row)
    keys: list[str] = []

    def end(session: Session, file_id: str, _now: datetime) -> None:
        current = repository.get_upload(session, caller.project_id, upload_id, is_locked=True)
        if mark is not None:
            idempotency.take(session, caller.project_id, mark, object_id=upload_id, now=now)
        # A large file takes a while to be put together: what began in time has come in time.
        keys[:] = uploads.complete(session, current, body.part_ids, file_id=file_id, now=now)

    with installation.storage.receive() as incoming:
        _join(installation, parts, incoming, body)
        accept(installation, caller, form, incoming, end)
    discard(installation.storage, keys)


def _keep_part(installation: Installation, caller: Caller, upload_id: str, incoming: Incoming) -> UploadPart:
    """Make a received part durable, then write its row."""
    part_id = new_id("part_")
    storage_key = f"uploads/{part_id}"
    installation.storage.keep(incoming, storage_key)

    def record(session: Session) -> UploadPart:
        part = uploads.add_part(
            session,
            caller,
            upload_id,
            part_id=part_id,
            size_bytes=incoming.size_bytes,
            sha256=incoming.sha256,
            storage_key=storage_key,
            now=clock(session),
        )
        quotas.require_storage(session, caller.project_id, quotas.limits_of(installation.settings))
        return part

    try:
        return installation.database.run(record, recall=lambda session: session.get(UploadPart, part_id))
    except CommitUnknownError:
        # As with files: its bytes are swept up if there is no row, and needed if there is one.
        raise
    except BaseException:
        discard(installation.storage, [storage_key])
        raise


def _join(
    installation: Installation, parts: Sequence[UploadPart], target: Incoming, body: CompleteRequest
) -> None:
    """Write the parts one behind the other, and compare the whole with what was announced."""
    md5 = hashlib.md5(usedforsecurity=False)
    try:
        for part in parts:
            for chunk in installation.storage.read_range(part.storage_key, 0, part.size_bytes):
                target.write(chunk)
                if body.md5 is not None:
                    md5.update(chunk)
    except FileNotFoundError as error:
        raise LuthierError(_GONE, "upload_not_pending") from error
    if body.md5 is not None and body.md5.lower() != md5.hexdigest():
        text = f"The parts have the MD5 {md5.hexdigest()}, not the announced one: send what differs again"
        raise LuthierError(text, "checksum_mismatch", "md5")
    if body.sha256 is not None:
        require_sha256(body.sha256, target.sha256)
