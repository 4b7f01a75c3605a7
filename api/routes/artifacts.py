"""What a job leaves behind: the list, one file, and all of them as one .tar."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from api.archives import archive_bytes, archive_size
from api.dependencies import CallerOf, InstallationOf
from api.downloads import stored_response
from api.schemas.artifacts import ArtifactList, artifact_list
from luthier import repository
from luthier.errors import LuthierError

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["artifacts"])


@router.get("/artifacts", operation_id="list_artifacts")
def list_artifacts(job_id: str, installation: InstallationOf, caller: CallerOf) -> ArtifactList:
    """List the files that a succeeded job has left; empty before."""
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        return artifact_list(repository.list_artifacts(session, job.id))


@router.get("/artifacts/{name:path}", operation_id="get_artifact", response_class=Response)
@router.head("/artifacts/{name:path}", include_in_schema=False)
def get_artifact(
    job_id: str, name: str, request: Request, installation: InstallationOf, caller: CallerOf
) -> Response:
    """One file; `Range`, `If-Range` and `If-None-Match` are served, the ETag is its SHA-256."""
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        artifact = repository.get_artifact(session, job.id, name)
    return stored_response(
        request,
        installation.storage,
        artifact.storage_key,
        filename=artifact.name,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
    )


@router.get("/artifacts.tar", operation_id="get_artifacts_tar", response_class=Response)
@router.head("/artifacts.tar", include_in_schema=False)
def get_artifacts_tar(
    job_id: str, request: Request, installation: InstallationOf, caller: CallerOf
) -> Response:
    """All files as one .tar, in the order of their names."""
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        artifacts = repository.list_artifacts(session, job.id)
    if not artifacts:
        text = f"Job {job.id} has left nothing yet: its artifacts appear when it succeeds"
        raise LuthierError(text, "artifact_not_found", "fine_tune_id")
    headers = {
        "Content-Length": str(archive_size(artifacts)),
        "Content-Disposition": f'attachment; filename="{job.id}.tar"',
        "X-Content-Type-Options": "nosniff",
    }
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/x-tar")
    return StreamingResponse(
        archive_bytes(artifacts, installation.storage), 200, headers, "application/x-tar"
    )
