"""`/v1/files`: training data in, results out."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.accepting import accept, refuse_over_quota
from api.conditional import tagged
from api.dependencies import After, CallerOf, InstallationOf, Limit
from api.downloads import stored_response
from api.multipart import announced_bytes, file_bytes, receive_form
from api.openapi import MULTIPART_BODY
from api.schemas.files import FileDeleted, FileObject, file_object
from api.schemas.pages import ListPage, page_of
from luthier import repository
from luthier.database import clock
from luthier.disk import require_room
from luthier.errors import LuthierError
from luthier.service import files
from luthier.storage import discard
from luthier.tables import File

MAX_LIMIT = 10_000

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("", operation_id="create_file", openapi_extra=MULTIPART_BODY)
async def create_file(request: Request, installation: InstallationOf, caller: CallerOf) -> FileObject:
    """Upload a file. One of up to 8 MiB is checked at once; a longer one is `uploaded` until it was checked.

    So is Parquet, or what is packed by gzip or zstd, that takes long to decode. The end of those is
    `processed` or `error`.

    A file with a mistake is refused, and nothing is kept. One whose rows have keys that are not known is kept
    in status `error`: say what they are with `files/{id}/prepare`, `files/{id}/register`, or a job's
    `dataset.columns`. So is one with bad rows among good ones where `on_bad_row` is `drop`; a job that says
    the same in `dataset.on_bad_row` passes them over, counted. With `keep` any file is kept, for
    `files/{id}/register` to say how its rows are read.
    """
    await run_in_threadpool(require_room, installation, announced_bytes(request))
    await run_in_threadpool(refuse_over_quota, installation, caller, file_bytes(request))
    async with contextmanager_in_threadpool(installation.storage.receive()) as incoming:
        form = await receive_form(request, incoming, installation.settings)
        return file_object(await run_in_threadpool(accept, installation, caller, form, incoming))


@router.get("", operation_id="list_files", response_model=ListPage[FileObject])
def list_files(
    *,
    request: Request,
    installation: InstallationOf,
    caller: CallerOf,
    after: After = None,
    limit: Limit = MAX_LIMIT,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=32)] = None,
    name: Annotated[str | None, Query(max_length=128, description="Registered under this name")] = None,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="With this content")] = None,
) -> Response:
    """List files by the time they came, newest first."""
    with installation.database.reading() as session:
        page = repository.list_files(
            session,
            caller.project_id,
            after=after,
            limit=min(limit, MAX_LIMIT),
            purpose=purpose,
            name=name,
            sha256=sha256,
            ascending=order == "asc",
        )
    return tagged(request, page_of([file_object(file) for file in page.data], has_more=page.has_more))


@router.get("/{file_id}", operation_id="get_file", response_model=FileObject)
def get_file(file_id: str, request: Request, installation: InstallationOf, caller: CallerOf) -> Response:
    """One file; `If-None-Match` is served."""
    with installation.database.reading() as session:
        file = repository.get_file(session, caller.project_id, file_id)
    return tagged(request, file_object(file))


@router.get("/{file_id}/content", operation_id="get_file_content", response_class=Response)
@router.head("/{file_id}/content", include_in_schema=False)
def get_file_content(
    file_id: str, request: Request, installation: InstallationOf, caller: CallerOf
) -> Response:
    """The file's bytes, as they were sent; `Range` and `If-None-Match` are served."""
    with installation.database.reading() as session:
        file = repository.get_file(session, caller.project_id, file_id)
    if not file.sha256:
        text = f"File {file.id} has no content: {file.status_details or 'it is being made'}"
        raise LuthierError(text, "not_found", "id")
    return stored_response(
        request,
        installation.storage,
        file.storage_key,
        filename=file.filename,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
    )


@router.delete("/{file_id}", operation_id="delete_file")
def delete_file(file_id: str, installation: InstallationOf, caller: CallerOf) -> FileDeleted:
    """Delete a file; refused while a job that has not ended uses it."""
    keys: list[str] = []

    def delete(session: Session) -> bool:
        file = repository.get_file(session, caller.project_id, file_id)
        keys[:] = files.delete_file(session, file, now=clock(session))
        return True

    def is_gone(session: Session) -> bool | None:
        return True if session.get(File, file_id) is None else None

    installation.database.run(delete, recall=is_gone)
    discard(installation.storage, keys)
    return FileDeleted(id=file_id)
