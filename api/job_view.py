"""Jobs as they are shown, each with its place in the queue."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from api.schemas.jobs import JobObject, job_object
from luthier.service import queue
from luthier.service.jobs import Caller
from luthier.tables import Job


def show_jobs(session: Session, caller: Caller, rows: Sequence[Job], now: datetime) -> list[JobObject]:
    """What rows of the caller's project show."""
    places = queue.places(session, rows, now=now)
    return [job_object(job, caller, place=places.get(job.id), now=now) for job in rows]
