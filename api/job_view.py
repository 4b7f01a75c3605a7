"""Jobs as they are shown, each with its place in the queue, and under which tag."""

import re
from collections.abc import Sequence
from datetime import datetime

from fastapi import Request, Response
from sqlalchemy.orm import Session

from api.conditional import holds, not_modified, tagged
from api.schemas.jobs import JobObject, job_object
from luthier.database import Database, clock
from luthier.errors import LuthierError
from luthier.repository import JobRow
from luthier.service import queue, versions
from luthier.service.jobs import Caller
from luthier.service.queue import Place
from luthier.service.versions import Version
from luthier.status import State
from luthier.tables import Job

# The part of a tag that `If-Match` does not look at, and the quote behind it.
_OF_RUN = re.compile(r'\.[^",]*"')

# Queued, with a place; running, with the time of its end.
_MOVING = frozenset({State.QUEUED, State.RUNNING})


def show_jobs(
    session: Session, caller: Caller, rows: Sequence[Job | JobRow], now: datetime
) -> list[JobObject]:
    """What rows of the caller's project show."""
    places = queue.places(session, rows, now=now)
    return [job_object(job, caller, place=places.get(job.id), now=now) for job in rows]


def answer_with_job(request: Request, database: Database, caller: Caller, job_id: str) -> Response:
    """A job under its tag, or 304, by one statement where neither a place nor the time is shown."""
    with database.glancing() as connection:
        if "if-none-match" in request.headers:
            version = versions.get_version(connection, caller.project_id, job_id)
            is_queued = version.state == State.QUEUED
            if not is_queued and (answer := not_modified(request, _tag(version, None))) is not None:
                return answer
        job, version = versions.get_versioned(connection, caller.project_id, job_id)
    if version.state not in _MOVING:
        return tagged(request, job_object(job, caller, place=None, now=None), _tag(version, None))
    with database.reading() as session:
        job, version = versions.get_versioned(session, caller.project_id, job_id)
        now = clock(session)
        place = queue.places(session, [job], now=now).get(job.id)
        tag = _tag(version, place)
        shown = job_object(job, caller, place=place, now=now)
    return not_modified(request, tag) or tagged(request, shown, tag)


def require_match(request: Request, session: Session, caller: Caller, job_id: str) -> None:
    """Refuse to change a job that its owner has changed since the look that `If-Match` names.

    What a run changes meanwhile does not count.

    Raises:
        LuthierError: `precondition_failed`.
    """
    asked = request.headers.get("if-match")
    if asked is None:
        return
    version = versions.get_version(session, caller.project_id, job_id)
    if not holds(_OF_RUN.sub('"', asked), version.of_owner):
        text = f"Job {job_id} has changed since it was read: read it again, then change it"
        raise LuthierError(text, "precondition_failed", "If-Match")


def _tag(version: Version, place: Place | None) -> str:
    """Waits in whole minutes, since they drift with the clock."""
    if place is None:
        return f"{version.of_owner}.{version.of_run}"
    minutes = None if place.wait_seconds is None else round(place.wait_seconds / 60)
    return f"{version.of_owner}.{version.of_run}.{place.position}-{minutes}"
