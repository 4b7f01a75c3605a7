"""What a job reports while it works: events, checkpoints, metrics and the log."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from api.dependencies import After, CallerOf, InstallationOf, Limit
from api.downloads import local_response, stored_response
from api.schemas.checkpoints import CheckpointObject, checkpoint_object
from api.schemas.events import EventObject, event_object, number_of
from api.schemas.metrics import MetricsObject, metrics_csv, metrics_object
from api.schemas.pages import ListPage, page_of
from luthier import metrics, repository
from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.tables import Run

MAX_EVENTS, MAX_CHECKPOINTS = 1000, 100
DEFAULT_POINTS, MAX_POINTS = 2_000, 100_000
_LOG = "log.txt"
_TEXT = "text/plain; charset=utf-8"

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["progress"])

# What the database holds: 32 bits.
Step = Annotated[int, Query(ge=0, le=2**31 - 1)]
Points = Annotated[
    int | None,
    Query(
        ge=metrics.MIN_POINTS,
        le=MAX_POINTS,
        description=f"Training steps at most; default: {DEFAULT_POINTS:,} for JSON, all for CSV",
    ),
]


@router.get("/events", operation_id="list_events")
def list_events(
    job_id: str, installation: InstallationOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> ListPage[EventObject]:
    """List what happened, newest first; numbers at a step are events of type `metrics`."""
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        before = None if after is None else number_of(after, job)
        page = repository.list_events(session, job, before=before, limit=min(limit, MAX_EVENTS))
    return page_of([event_object(row) for row in page.data], has_more=page.has_more)


@router.get("/checkpoints", operation_id="list_checkpoints")
def list_checkpoints(
    job_id: str, installation: InstallationOf, caller: CallerOf, after: After = None, limit: Limit = 10
) -> ListPage[CheckpointObject]:
    """List the checkpoints that are kept, newest first."""
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        page = repository.list_checkpoints(session, job, after=after, limit=min(limit, MAX_CHECKPOINTS))
    shown = [checkpoint_object(row, job, caller.organization_id) for row in page.data]
    return page_of(shown, has_more=page.has_more)


@router.get("/metrics", operation_id="get_metrics", response_model=MetricsObject)
def get_metrics(
    *,
    job_id: str,
    installation: InstallationOf,
    caller: CallerOf,
    from_step: Step = 0,
    to_step: Step | None = None,
    max_points: Points = None,
    format: Literal["json", "csv"] = "json",  # noqa: A002, the name of the parameter
) -> MetricsObject | Response:
    """The numbers by step, as columns; `format=csv` for a table.

    Where there are more training steps than `max_points`, those stay that hold the least or the greatest
    value of a number among their neighbours, and the first and the last one. Evaluations always stay and are
    not counted. Ask for fewer steps at a time, or for CSV, to have all of them.
    """
    if max_points is None and format == "json":
        max_points = DEFAULT_POINTS
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        rows = metrics.list_metrics(
            session, job.id, from_step=from_step, to_step=to_step, max_points=max_points
        )
        if format == "csv":
            return Response(metrics_csv(rows), media_type="text/csv")
        return metrics_object(job, rows)


@router.get("/logs", operation_id="get_logs", response_class=Response)
@router.head("/logs", include_in_schema=False)
def get_logs(
    *,
    job_id: str,
    request: Request,
    installation: InstallationOf,
    caller: CallerOf,
    tail: Annotated[int | None, Query(ge=1, description="Only so many lines from the end")] = None,
) -> Response:
    """The output of the job's newest run, or of its preparation before there was one; `Range` is served."""
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        run = repository.find_newest_run(session, job.id)
    found = None if run is None else _find_log(request, installation, run, f"{job_id}.log", tail)
    if found is None:
        raise LuthierError(f"Job {job.id} has no log yet: it has not started", "not_found", "fine_tune_id")
    return found


def _find_log(
    request: Request, installation: Installation, run: Run, filename: str, tail: int | None
) -> Response | None:
    """The log in storage once the run is over; before, where it runs, if that is this machine."""
    key = f"{run.job_id}/e{run.epoch:04d}/{_LOG}"
    storage = installation.storage
    size = storage.find_size(key)
    if size is not None:
        if tail is not None:
            text = b"".join(storage.read_range(key, 0, size))
            return Response(_last_lines(text, tail), media_type=_TEXT)
        return stored_response(request, storage, key, filename=filename, size_bytes=size, media_type=_TEXT)
    path = installation.settings.runs / key
    if not path.is_file():
        return None
    if tail is not None:
        return Response(_last_lines(path.read_bytes(), tail), media_type=_TEXT)
    return local_response(request, path, filename=filename, media_type=_TEXT)


def _last_lines(text: bytes, count: int) -> bytes:
    """Found from the end: a list of all lines takes many times the memory of the text."""
    start = len(text)
    for _ in range(count + text.endswith(b"\n")):
        start = text.rfind(b"\n", 0, start)
        if start < 0:
            return text
    return text[start + 1 :]
