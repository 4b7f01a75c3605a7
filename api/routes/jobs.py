"""`/v1/fine_tuning/jobs`: submit, list and look at jobs."""

import re
import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.datastructures import QueryParams

from api import estimating, model_checks
from api.conditional import tagged
from api.dependencies import REPLAYED, After, CallerOf, InstallationOf, JobBody, Limit, SubmissionOf
from api.job_view import answer_with_job, show_jobs
from api.openapi import JOB_BODY
from api.schemas.estimates import EstimateObject
from api.schemas.jobs import JobDeleted, JobObject
from api.schemas.pages import ListPage, page_of
from luthier import repository
from luthier.database import clock
from luthier.disk import require_room
from luthier.errors import invalid
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.models import require_known
from luthier.service import deletion, idempotency, jobs, quotas
from luthier.service.idempotency import Mark
from luthier.service.jobs import Caller
from luthier.spec import MAX_SEED, JobRequest
from luthier.storage import discard
from luthier.tables import Job

MAX_LIMIT = 100
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_NO_METADATA = "null"

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"])


@router.post("", operation_id="create_job", openapi_extra=JOB_BODY)
def create_job(
    *,
    asked: SubmissionOf,
    response: Response,
    installation: InstallationOf,
    caller: CallerOf,
    dry_run: Annotated[bool, Query(description="Only estimate, as `jobs/estimate` does")] = False,
) -> JobObject | EstimateObject:
    """Submit a job. Settings that OpenAI's API lacks stand in `qlora` and `dataset`.

    The body may be YAML, too, and a LLaMA-Factory job whose datasets are registered files.

    With an `Idempotency-Key`, the same request within a day finds the job that the first one made.
    """
    body, mark = asked.request, asked.mark
    if mark is not None and not dry_run and (replayed := _find_known(installation, caller, mark)):
        response.headers[REPLAYED] = "true"
        return replayed
    _check_model(body, installation, caller)
    if dry_run:
        return estimating.estimate_job(installation, caller, body)
    require_room(installation, 0)
    job_id, work_id, seed = new_id("ftjob"), new_id("work"), secrets.randbelow(MAX_SEED + 1)

    def submit(session: Session) -> Job:
        now = clock(session)
        if mark and (known := idempotency.take(session, caller.project_id, mark, object_id=job_id, now=now)):
            response.headers[REPLAYED] = "true"
            return repository.get_job(session, caller.project_id, known)
        quotas.require_queue_room(session, caller.project_id, quotas.limits_of(installation.settings))
        return jobs.submit(
            session, caller, body, job_id=job_id, work_id=work_id, seed=seed, now=now, notes=asked.notes
        )

    job = installation.database.run(submit, recall=lambda session: repository.find_job(session, job_id))
    # Behind the commit: its place in the queue is nothing that other writers should wait for.
    with installation.database.reading() as session:
        return show_jobs(session, caller, [job], clock(session))[0]


@router.post("/estimate", operation_id="estimate_job", openapi_extra=JOB_BODY)
def estimate_job(body: JobBody, installation: InstallationOf, caller: CallerOf) -> EstimateObject:
    """What a job would be and cost: rows, tokens, steps, memory, seconds, disk, problems and warnings.

    The body is that of a new job, and nothing is submitted. Tokens are exact where the data was prepared
    before, else told from 1,000 rows of each file. An answer that takes longer than some seconds is 503 with
    `not_done_yet`: the same call finds it later.
    """
    _check_model(body, installation, caller)
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
def get_job(job_id: str, request: Request, installation: InstallationOf, caller: CallerOf) -> Response:
    """One job. Its ETag makes polling cheap: with `If-None-Match` the answer is 304 while nothing changed."""
    return answer_with_job(request, installation.database, caller, job_id)


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


def _find_known(installation: Installation, caller: Caller, mark: Mark) -> JobObject | None:
    """The job that the same request made before, whatever has become of its files and models since."""
    with installation.database.reading() as session:
        now = clock(session)
        job_id = idempotency.find(session, caller.project_id, mark, now=now)
        if job_id is None:
            return None
        job = repository.get_job(session, caller.project_id, job_id)
        return show_jobs(session, caller, [job], now)[0]


def _asked_metadata(query: QueryParams) -> dict[str, str]:
    """The pairs of `metadata[key]=value`."""
    pairs = {match[1]: value for name, value in query.items() if (match := _METADATA.fullmatch(name))}
    if any('"' in key for key in pairs):
        raise invalid("A metadata key to look for cannot hold a double quote", "metadata")
    return pairs


def _check_model(body: JobRequest, installation: Installation, caller: Caller) -> None:
    """Refuse a model that cannot be used, and settings that are too large for one that is here.

    Raises:
        LuthierError: `invalid_model`, `model_not_supported`, or `invalid_value` with the setting as param.
    """
    settings = installation.settings
    model_checks.check_template(body.dataset)
    with installation.database.reading() as session:
        base = model_checks.base_of(session, caller, body.model)
    model = require_known(settings.models, base, settings.allowed_models)
    if model is not None:
        model_checks.check_limits(model, body.qlora)
