"""`/v1/fine_tuning/queue` and `/v1/fine_tuning/workers`: what waits, and who works."""

from datetime import timedelta

from fastapi import APIRouter

from api.dependencies import After, CallerOf, InstallationOf, Limit
from api.job_view import show_jobs
from api.schemas.jobs import JobObject
from api.schemas.pages import ListPage, page_of
from api.schemas.queue import WorkerObject, worker_object
from luthier import repository
from luthier.database import clock
from luthier.service import queue, workers

MAX_LIMIT = 100
_SHOWN_HOURS = 24

router = APIRouter(prefix="/v1/fine_tuning", tags=["queue"])


@router.get("/queue", operation_id="list_queue")
def list_queue(
    installation: InstallationOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> ListPage[JobObject]:
    """List the queued jobs, the next one first, each with its position and the expected wait.

    Positions and waits are estimates: they take it that nothing ends early, nothing comes, and every job fits
    every device. Projects take turns, so jobs of others are counted, and not shown.
    """
    with installation.database.reading() as session:
        page = queue.list_queue(session, caller.project_id, after=after, limit=min(limit, MAX_LIMIT))
        shown = show_jobs(session, caller, page.data, clock(session))
    return page_of(shown, has_more=page.has_more)


@router.get("/workers", operation_id="list_workers")
def list_workers(installation: InstallationOf, caller: CallerOf) -> ListPage[WorkerObject]:
    """List the agents that were heard of within a day, by id; all of them in one page.

    `reason` tells why one is set aside, and names the job that this was met in where it is the project's own.
    """
    with installation.database.reading() as session:
        since = clock(session) - timedelta(hours=_SHOWN_HOURS)
        shown = [
            worker_object(worker, workers.shown_reason(session, worker, caller.project_id))
            for worker in repository.list_workers(session, since=since)
        ]
    return page_of(shown, has_more=False)
