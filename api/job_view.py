"""Jobs as they are shown, each with its place in the queue, and under which tag."""

import re
from collections.abc import Sequence
from datetime import datetime

from fastapi import Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.conditional import holds, not_modified, tagged
from api.schemas.jobs import JobObject, job_object
from api.together import Together
from luthier.database import Database, clock
from luthier.errors import LuthierError
from luthier.repository import JobRow
from luthier.service import queue, versions
from luthier.service.jobs import Caller
from luthier.service.queue import Place
from luthier.service.versions import Asked, Version
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


class JobLooks:
    """Looks at jobs, all that are asked for at a moment by one statement."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._versions = Together(self._find_versions)
        self._jobs = Together(self._find_jobs)

    async def tag(self, caller: Caller, job_id: str) -> str | None:
        """The tag of a job as it is now; None where there is none, or where it names a place in the queue."""
        version = await self._versions.get((caller.project_id, job_id))
        return None if version is None or version.state == State.QUEUED else _tag(version, None)

    async def job(self, caller: Caller, job_id: str) -> tuple[JobRow, Version]:
        """A job as it is now.

        Raises:
            LuthierError: `fine_tune_not_found`, also for a job of somebody else.
        """
        found = await self._jobs.get((caller.project_id, job_id))
        if found is None:
            raise versions.unknown(job_id)
        return found

    def _find_versions(self, asked: Sequence[Asked]) -> dict[Asked, Version]:
        with self.database.glancing() as connection:
            return versions.find_versions(connection, asked)

    def _find_jobs(self, asked: Sequence[Asked]) -> dict[Asked, tuple[JobRow, Version]]:
        with self.database.glancing() as connection:
            return versions.find_versioned(connection, asked)


async def answer_with_job(request: Request, looks: JobLooks, caller: Caller, job_id: str) -> Response:
    """A job under its tag, or 304 (`unchanged` has answered most of those)."""
    job, version = await looks.job(caller, job_id)
    if version.state in _MOVING:
        return await run_in_threadpool(_answer_at_time, request, looks.database, caller, job_id)
    tag = _tag(version, None)
    return not_modified(request, tag) or tagged(request, job_object(job, caller, place=None, now=None), tag)


def _answer_at_time(request: Request, database: Database, caller: Caller, job_id: str) -> Response:
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
