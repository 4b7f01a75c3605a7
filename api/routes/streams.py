"""`.../events/stream`: what happens to one job, or how all of them stand, as server-sent events."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import BroadcastOf, CallerOf, InstallationOf
from api.schemas.events import number_of
from api.streams.responses import LastingResponse
from api.streams.sending import job_stream, project_stream
from luthier import repository
from luthier.errors import invalid, printable
from luthier.installation import Installation
from luthier.service.jobs import Caller
from luthier.status import FINAL, State

_EVENTS = "text/event-stream"
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {_EVENTS: {"schema": {"type": "string"}}}}
}
_OVER: dict[int | str, dict[str, Any]] = {
    204: {"description": "The job has ended, and nothing is left to tell"}
}

router = APIRouter(prefix="/v1/fine_tuning", tags=["progress"])


@router.get(
    "/jobs/{job_id}/events/stream",
    operation_id="stream_events",
    response_class=Response,
    responses=_STREAM | _OVER,
)
async def stream_events(
    *,
    job_id: str,
    installation: InstallationOf,
    caller: CallerOf,
    broadcast: BroadcastOf,
    after: Annotated[
        str | None, Query(description="Number or id of the last event that is known; default: none")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", description="The same, as browsers send it; goes first")
    ] = None,
) -> Response:
    """Follow a job: its events from the first one on, and its status whenever it changes.

    `event` is `message`, `metrics`, `status` or `done`; `id` is the number of the event, `data` is JSON: the
    event as `events` lists it, or the changing part of the job. `done` is the last one. A silent stream gets
    a comment every 15 seconds. A stream ends after a quarter of an hour: connect again, and it goes on.
    """
    number = await run_in_threadpool(_known_number, installation, caller, job_id, last_event_id, after)
    if number is None:
        return Response(status_code=204)
    return LastingResponse(job_stream(broadcast, installation.database, job_id, number), _EVENTS)


@router.get("/events/stream", operation_id="stream_jobs", response_class=Response, responses=_STREAM)
async def stream_jobs(caller: CallerOf, broadcast: BroadcastOf) -> Response:
    """Follow all jobs of the project: how each stands that has not ended, then each change.

    `event` is `status`, `data` as in the stream of one job. There is no `id`: who connects again is told how
    all stand, again.
    """
    return LastingResponse(project_stream(broadcast, caller.project_id), _EVENTS)


def _known_number(
    installation: Installation, caller: Caller, job_id: str, last_event_id: str | None, after: str | None
) -> int | None:
    """The number of the last event that the client has, 0 for none; None where all is told.

    Raises:
        LuthierError: there is no such job, or it has no such event.
    """
    given, param = (after, "after") if last_event_id is None else (last_event_id, "Last-Event-ID")
    with installation.database.reading() as session:
        job = repository.get_job(session, caller.project_id, job_id)
    if not given:
        return 0
    number = (
        int(given)
        if given.isascii() and given.isdecimal() and len(given) < 10
        else number_of(given, job, param)
    )
    if number >= job.next_number:
        raise invalid(f"'{param}' names no event of this job: {printable(given)}", param)
    return None if State(job.state) in FINAL and number == job.next_number - 1 else number
