"""`/v1/files`: training data in, results out."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import After, CallerOf, InstallationOf, Limit
from api.disk import require_room
from api.downloads import file_response
from api.multipart import UploadForm, announced_bytes, receive_form
from api.openapi import MULTIPART_BODY
from api.schemas.files import FileDeleted, FileObject, file_object
from api.schemas.pages import ListPage, page_of
from luthier import repository
from luthier.database import clock
from luthier.datasets.reading import Reading
from luthier.datasets.validate import check_head, failure_message, validate_file
from luthier.errors import LuthierError
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import files
from luthier.service.jobs import Caller
from luthier.storage import Incoming

MAX_LIMIT = 10_000
# A small file that decodes to more than this is left to a worker.
MAX_DECODED_BYTES = 64 * 1024 * 1024
# Errors of a refused file that the answer lists; the first stands in its message, with the number of all.
MAX_DETAILS = 20

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("", operation_id="create_file", openapi_extra=MULTIPART_BODY)
async def create_file(request: Request, installation: InstallationOf, caller: CallerOf) -> FileObject:
    """Upload a file. A small one is checked at once; one over 8 MiB is `uploaded` until it was checked."""
    require_room(installation.storage, announced_bytes(request))
    with installation.storage.receive() as incoming:
        form = await receive_form(request, incoming, installation.settings.max_upload_bytes)
        return await run_in_threadpool(_accept, installation, caller, form, incoming)


@router.get("", operation_id="list_files")
def list_files(
    *,
    installation: InstallationOf,
    caller: CallerOf,
    after: After = None,
    limit: Limit = MAX_LIMIT,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=32)] = None,
) -> ListPage[FileObject]:
    """List files by the time they came, newest first."""
    with installation.database.reading() as session:
        page = repository.list_files(
            session,
            caller.project_id,
            after=after,
            limit=min(limit, MAX_LIMIT),
            purpose=purpose,
            ascending=order == "asc",
        )
    return page_of([file_object(file) for file in page.data], has_more=page.has_more)


@router.get("/{file_id}", operation_id="get_file")
def get_file(file_id: str, installation: InstallationOf, caller: CallerOf) -> FileObject:
    """One file."""
    with installation.database.reading() as session:
        return file_object(repository.get_file(session, caller.project_id, file_id))


@router.get("/{file_id}/content", operation_id="get_file_content", response_class=Response)
@router.head("/{file_id}/content", include_in_schema=False)
def get_file_content(
    file_id: str, request: Request, installation: InstallationOf, caller: CallerOf
) -> Response:
    """The file's bytes, as they were sent; `Range` and `If-None-Match` are served."""
    with installation.database.reading() as session:
        file = repository.get_file(session, caller.project_id, file_id)
    return file_response(
        request,
        installation.storage.path(file.storage_key),
        filename=file.filename,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
    )


@router.delete("/{file_id}", operation_id="delete_file")
def delete_file(file_id: str, installation: InstallationOf, caller: CallerOf) -> FileDeleted:
    """Delete a file; refused while a job that has not ended uses it."""
    with installation.database.transaction() as session:
        file = repository.get_file(session, caller.project_id, file_id)
        storage_key = files.delete_file(session, file, now=clock(session))
    installation.storage.delete(storage_key)
    return FileDeleted(id=file_id)


def _accept(installation: Installation, caller: Caller, form: UploadForm, incoming: Incoming) -> FileObject:
    """Check what was received, make it durable, then write its row, so that no row is without bytes."""
    incoming.flush()
    report = _check(incoming.path, form.filename, installation.settings.whole_check_bytes)
    file_id = new_id("file")
    storage_key = f"files/{file_id}"
    installation.storage.keep(incoming, storage_key)
    try:
        with installation.database.transaction() as session:
            now = clock(session)
            expires = form.expires_after_seconds
            file = files.record_upload(
                session,
                caller,
                file_id=file_id,
                work_id=new_id("work"),
                filename=form.filename,
                purpose=form.purpose,
                size_bytes=incoming.size_bytes,
                sha256=incoming.sha256,
                storage_key=storage_key,
                report=report,
                now=now,
                expires_at=None if expires is None else now + timedelta(seconds=expires),
            )
    except BaseException:
        installation.storage.delete(storage_key)
        raise
    return file_object(file)


def _check(path: Path, filename: str, whole_check_bytes: int) -> dict[str, Any] | None:
    """The report of a file that was checked whole; None for a larger one whose head was.

    Raises:
        LuthierError: `invalid_file`, with the first error's line and the others as details.
    """
    is_small = path.stat().st_size <= whole_check_bytes
    if is_small:
        report = validate_file(path, filename, reading=Reading(max_decoded_bytes=MAX_DECODED_BYTES))
        is_small = "dataset.decoded_too_large" not in report.error_counts
    if not is_small:
        report = check_head(path, filename)
    if not report.valid:
        details = [
            error.model_dump(mode="json", exclude={"path"}) | {"loc": error.path}
            for error in report.errors[:MAX_DETAILS]
        ]
        raise LuthierError(failure_message(report), "invalid_file", "file", details)
    return report.model_dump(mode="json") if is_small else None
