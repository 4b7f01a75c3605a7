"""What a job reports while it works: events, checkpoints, metrics and the log."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.dependencies import After, BroadcastOf, CallerOf, InstallationOf, Limit
from api.downloads import local_response, stored_response
from api.log_files import LogFile, find_log, tail_start
from api.schemas.checkpoints import CheckpointObject, checkpoint_object
from api.schemas.events import EventObject, event_object, number_of
from api.schemas.metrics import MetricsObject, metrics_csv, metrics_object
from api.schemas.pages import ListPage, page_of
from api.streams.logs import LogFollower, follow_log
from api.streams.responses import LastingResponse
from luthier import metrics, repository
from luthier.errors import LuthierError, invalid, printable
from luthier.installation import Installation

MAX_EVENTS, MAX_CHECKPOINTS = 1000, 100
DEFAULT_POINTS, MAX_POINTS = 2_000, 100_000
_TEXT = "text/plain; charset=utf-8"
_LOG_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The log", "content": {"text/plain": {"schema": {"type": "string"}}}},
    206: {
        "description": "The range that was asked for",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
}

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
    keys: Annotated[
        str | None, Query(max_length=256, description="Names of numbers with commas; default: all")
    ] = None,
    format: Literal["json", "csv"] = "json",  # noqa: A002, the name of the parameter
) -> MetricsObject | Response:
    """The numbers by step, as columns; `format=csv` for a table.

    Where there are more training steps than `max_points`, those stay that hold the least or the greatest
    value of a number among their neighbours, and the first and the last one. Evaluations always stay and are
    not counted. Ask for fewer steps at a time, or for CSV, to have all of them.
    """
    asked = metrics.KEYS if keys is None else _asked_keys(keys)
    if max_points is None and format == "json":
        max_points = DEFAULT_POINTS
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        rows = metrics.list_metrics(
            session, job.id, from_step=from_step, to_step=to_step, max_points=max_points, keys=asked
        )
        if format == "csv":
            return Response(metrics_csv(rows, asked), media_type="text/csv")
        return metrics_object(job, rows, asked)


@router.get("/logs", operation_id="get_logs", response_class=Response, responses=_LOG_RESPONSES)
@router.head("/logs", include_in_schema=False)
def get_logs(
    *,
    job_id: str,
    request: Request,
    installation: InstallationOf,
    caller: CallerOf,
    broadcast: BroadcastOf,
    tail: Annotated[int | None, Query(ge=1, le=10**9, description="Only so many lines from the end")] = None,
    stream: Annotated[bool, Query(description="Follow the log until the job ends")] = False,
    offset: Annotated[
        int,
        Query(ge=0, le=2**53, description="With `stream`: pass over so many bytes of the newest run's log"),
    ] = 0,
    log_id: Annotated[
        str | None,
        Query(
            alias="log",
            max_length=256,
            description="With `stream`: the `X-Log` that `offset` counts in, or `newest`; ends with that log",
        ),
    ] = None,
) -> Response:
    """The output of the job's newest run, or of its preparation before there was one; `Range` is served.

    With `stream=true` it comes as it is written, from one run to the next, until the job ends; a job without
    a log is waited for. It ends after a quarter of an hour, too: as after a connection that broke, go on with
    `offset`. The log of a run on another host comes when that run ends.

    A log begins anew with each run, and when it has grown too long. With `log` an answer ends there, so that
    a client knows its place: it begins `X-Log-Offset` bytes into the log that `X-Log` names, with the first
    one where that is not the log that was asked for. An answer without these headers is empty.
    """
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
        run = repository.find_newest_run(session, job.id)
    if stream and request.method == "GET":
        follower = LogFollower(installation, job.id, offset=offset, tail=tail, only=log_id)
        response = LastingResponse(follow_log(broadcast, follower, job.id), _TEXT)
        response.headers.update(follower.find_place())
        return response
    log = None if run is None else find_log(installation, run)
    if log is None:
        raise LuthierError(f"Job {job.id} has no log yet: it has not started", "not_found", "fine_tune_id")
    return _show(request, installation, log, f"{job.id}.log", tail)


def _asked_keys(text: str) -> list[str]:
    """The names in a list with commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in metrics.KEYS]:
        text = f"Invalid value for 'keys': {printable(unknown[0])!r}. Supported: {', '.join(metrics.KEYS)}."
        raise invalid(text, "keys")
    return names


def _show(
    request: Request, installation: Installation, log: LogFile, filename: str, tail: int | None
) -> Response:
    if tail is not None:
        lines = log.read(tail_start(log, tail), log.size_bytes)
        return StreamingResponse(lines, media_type=_TEXT)
    if log.path is not None:
        return local_response(request, log.path, filename=filename, media_type=_TEXT)
    return stored_response(
        request, installation.storage, log.key, filename=filename, size_bytes=log.size_bytes, media_type=_TEXT
    )
