"""`/v1/fine_tuning/jobs/{id}/...`: what owners wish: cancel, pause, resume, retry, another place."""

import secrets
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from sqlalchemy.orm import Session

from api.dependencies import CallerOf, InstallationOf, body_of, optional_body_of
from api.job_view import require_match, show_jobs
from api.openapi import json_body
from api.schemas.job_requests import JobPatch, RetryRequest
from api.schemas.jobs import JobObject
from luthier import repository
from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import control, jobs, quotas
from luthier.service.jobs import Caller
from luthier.spec import MAX_SEED, JobRequest
from luthier.status import DesiredState
from luthier.tables import Job

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"])


@router.post("/{job_id}/cancel", operation_id="cancel_job")
def cancel_job(job_id: str, installation: InstallationOf, caller: CallerOf) -> JobObject:
    """Cancel: a waiting job at once, a running one at the end of its step; its checkpoints stay.

    A cancelled job is answered as it is.
    """
    return _wish(installation, caller, job_id, control.request_cancel, _wants(DesiredState.CANCEL))


@router.post("/{job_id}/pause", operation_id="pause_job")
def pause_job(job_id: str, installation: InstallationOf, caller: CallerOf) -> JobObject:
    """Pause: a waiting job at once, a running one at the end of its step, with a checkpoint.

    It keeps `running` with phase `pausing` until its device is free.
    """
    return _wish(installation, caller, job_id, control.request_pause, _wants(DesiredState.PAUSE))


@router.post("/{job_id}/resume", operation_id="resume_job")
def resume_job(job_id: str, installation: InstallationOf, caller: CallerOf) -> JobObject:
    """Let a paused job go on, before others of its priority; nothing happens to one that is not."""
    return _wish(installation, caller, job_id, control.resume, _wants(DesiredState.RUN))


@router.post(
    "/{job_id}/retry", operation_id="retry_job", openapi_extra=json_body(RetryRequest, required=False)
)
def retry_job(
    job_id: str,
    body: Annotated[RetryRequest, Depends(optional_body_of(RetryRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> JobObject:
    """Try a job again that failed or was cancelled: a new job with its settings and files.

    It starts from the newest checkpoint, or all over with `{"from": "start"}`.
    """
    again_id, work_id, seed = new_id("ftjob"), new_id("work"), secrets.randbelow(MAX_SEED + 1)

    def retry(session: Session) -> JobObject:
        now = clock(session)
        job = repository.get_job(session, caller.project_id, job_id)
        quotas.require_queue_room(session, caller.project_id, quotas.limits_of(installation.settings))
        again = control.retry(
            session, caller, job, from_=body.from_, job_id=again_id, work_id=work_id, seed=seed, now=now
        )
        return show_jobs(session, caller, [again], now)[0]

    def find(session: Session) -> JobObject | None:
        again = repository.find_job(session, again_id)
        return show_jobs(session, caller, [again], clock(session))[0] if again else None

    return installation.database.run(retry, recall=find)


@router.get("/{job_id}/request", operation_id="get_job_request")
def get_job_request(job_id: str, installation: InstallationOf, caller: CallerOf) -> dict[str, Any]:
    """What a job was submitted with: a body for another one. What was left to the service is left out."""
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        request = JobRequest.model_validate(job.request, strict=False)
    body = request.model_dump(mode="json", exclude_defaults=True)
    if request.method is not None:
        # Clients tell by it what the rest means.
        body["method"]["type"] = request.method.type
    return body


@router.patch("/{job_id}", operation_id="update_job", openapi_extra=json_body(JobPatch))
def update_job(
    job_id: str,
    body: Annotated[JobPatch, Depends(body_of(JobPatch))],
    request: Request,
    installation: InstallationOf,
    caller: CallerOf,
    _if_match: Annotated[
        str | None, Header(alias="If-Match", description="ETag of the job as it was read; 412 if it changed")
    ] = None,
) -> JobObject:
    """Change a job's name or metadata and, while it waits, its priority or its place in the queue.

    With `If-Match`, only where nobody has changed these since the job was read.
    """

    def change(session: Session) -> JobObject:
        now = clock(session)
        job = repository.get_job(session, caller.project_id, job_id)
        session.refresh(job, with_for_update=True)
        require_match(request, session, caller, job_id)
        if body.priority is not None or body.place is not None:
            control.reprioritise(session, job, priority=body.priority, place=body.place, now=now)
        jobs.annotate(session, job, body.model_dump(include={"name", "metadata"}, exclude_unset=True))
        return show_jobs(session, caller, [job], now)[0]

    return installation.database.run(change)


def _wish(
    installation: Installation,
    caller: Caller,
    job_id: str,
    act: Callable[..., object],
    is_heard: Callable[[Job], bool],
) -> JobObject:
    """Carry a wish out; `is_heard` tells from the row, where the outcome of the commit is unknown."""

    def carry_out(session: Session) -> JobObject:
        now = clock(session)
        job = repository.get_job(session, caller.project_id, job_id)
        act(session, job, now=now)
        return show_jobs(session, caller, [job], now)[0]

    def find(session: Session) -> JobObject | None:
        job = repository.get_job(session, caller.project_id, job_id)
        return show_jobs(session, caller, [job], clock(session))[0] if is_heard(job) else None

    return installation.database.run(carry_out, recall=find)


def _wants(wish: DesiredState) -> Callable[[Job], bool]:
    return lambda job: job.desired_state == wish
