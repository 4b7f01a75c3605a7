"""`/v1/fine_tuning/jobs`: submit, list and look at jobs."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams

from api import estimating, model_checks
from api.conditional import tagged
from api.dependencies import REPLAYED, After, CallerOf, InstallationOf, JobBody, Limit, SubmissionOf
from api.job_view import answer_with_job, show_jobs
from api.openapi import JOB_BODY
from api.schemas.estimates import EstimateObject
from api.schemas.jobs import JobDeleted, JobObject
from api.schemas.pages import ListPage, page_of
from api.submitting import Submits
from luthier import repository
from luthier.database import clock
from luthier.errors import invalid
from luthier.service import deletion
from luthier.storage import discard

MAX_LIMIT = 100
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_NO_METADATA = "null"

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"])


@router.post("", operation_id="create_job", openapi_extra=JOB_BODY)
async def create_job(
    *,
    asked: SubmissionOf,
    request: Request,
    response: Response,
    installation: InstallationOf,
    caller: CallerOf,
    dry_run: Annotated[bool, Query(description="Only estimate, as `jobs/estimate` does")] = False,
) -> JobObject | EstimateObject:
    """Submit a job. Settings that OpenAI's API lacks stand in `qlora` and `dataset`.

    The body may be YAML, too, and a LLaMA-Factory job whose datasets are registered files.

    With an `Idempotency-Key`, the same request within a day finds the job that the first one made.
    """
    if dry_run:
        return await run_in_threadpool(estimate_job, asked.request, installation, caller)
    submits: Submits = request.app.state.submits
    submitted = await submits.submit(asked, caller)
    if submitted.is_replayed:
        response.headers[REPLAYED] = "true"
    return submitted.job


@router.post("/estimate", operation_id="estimate_job", openapi_extra=JOB_BODY)
def estimate_job(body: JobBody, installation: InstallationOf, caller: CallerOf) -> EstimateObject:
    """What a job would be and cost: rows, tokens, steps, memory, seconds, disk, problems and warnings.

    The body is that of a new job, and nothing is submitted. Tokens are exact where the data was prepared
    before, else told from 1,000 rows of each file. An answer that takes longer than some seconds is 503 with
    `not_done_yet`: the same call finds it later.
    """
    model_checks.check_model(installation, caller, body)
    return estimating.estimate_job(installation, caller, body)


@router.get("", operation_id="list_jobs", response_model=ListPage[JobObject])
def list_jobs(
    request: Request, installation: InstallationOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> Response:
    """List jobs, newest first; `metadata[key]=value` picks some, `metadata=null` those without any."""
    query = request.query_params
    with installation.database.reading() as session:
        page = repository.list_jobs(
            session,
            caller.project_id,
            after=after,
            limit=min(limit, MAX_LIMIT),
            metadata=_asked_metadata(query),
            without_metadata=query.get("metadata") == _NO_METADATA,
        )
        shown = show_jobs(session, caller, page.data, clock(session))
    return tagged(request, page_of(shown, has_more=page.has_more))


@router.get("/{job_id}", operation_id="get_job", response_model=JobObject)
async def get_job(job_id: str, request: Request) -> Response:
    """One job. Its ETag makes polling cheap: with `If-None-Match` the answer is 304 while nothing changed."""
    return await answer_with_job(request, request.app.state.job_looks, request.state.caller, job_id)


@router.delete("/{job_id}", operation_id="delete_job")
def delete_job(job_id: str, installation: InstallationOf, caller: CallerOf) -> JobDeleted:
    """Delete a job that has ended, with its tuned model, checkpoints, artifacts, events, metrics and logs.

    Its files stay, the result file too: delete them by `/v1/files`.
    """
    keys: list[str] = []

    def delete(session: Session) -> bool:
        job = repository.get_job(session, caller.project_id, job_id)
        keys[:] = deletion.delete_job(session, job, now=clock(session))
        return True

    def is_gone(session: Session) -> bool | None:
        job = repository.find_job(session, job_id)
        return True if job is not None and job.deleted_at is not None else None

    installation.database.run(delete, recall=is_gone)
    discard(installation.storage, keys)
    return JobDeleted(id=job_id)


def _asked_metadata(query: QueryParams) -> dict[str, str]:
    """The pairs of `metadata[key]=value`."""
    pairs = {match[1]: value for name, value in query.items() if (match := _METADATA.fullmatch(name))}
    if any('"' in key for key in pairs):
        raise invalid("A metadata key to look for cannot hold a double quote", "metadata")
    return pairs
