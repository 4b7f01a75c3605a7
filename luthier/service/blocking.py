"""Jobs that wait for something, and how they go on once it is there again."""

from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.service.transitions import move, note, ring
from luthier.service.watching import IS_WAITING
from luthier.status import BlockedOn, Phase, Queue, State
from luthier.tables import Job


def unblock(session: Session, *, blocked_on: BlockedOn, now: datetime, limit: int) -> list[str]:
    """Queue jobs that waited for what is there again, in the order of their queue; returns their ids.

    No budget is used: being blocked was no fault of theirs. Each waits a little in any case, so that a job
    which needs more than there is does not go round in a circle.
    """
    query = select(Job).where(IS_WAITING, Job.state == State.BLOCKED, Job.blocked_on == blocked_on)
    query = query.where(or_(Job.not_before.is_(None), Job.not_before <= now))
    query = query.order_by(Job.queue_key, Job.id).limit(limit)
    jobs = session.scalars(query.with_for_update(skip_locked=True)).all()
    for job in jobs:
        move(session, job, [State.BLOCKED], State.QUEUED, now=now, phase=Phase.WAITING)
        note(session, job, "job_queued", f"There is enough again of: {blocked_on}", now=now)
        ring(session, job, now=now)
    return [job.id for job in jobs]


def unblock_secret(session: Session, project_id: str, *, now: datetime, limit: int) -> list[str]:
    """Queue a project's jobs that waited for a secret, which was set now; returns their ids."""
    query = select(Job).where(IS_WAITING, Job.state == State.BLOCKED, Job.blocked_on == BlockedOn.SECRET)
    query = query.where(Job.project_id == project_id).order_by(Job.queue_key, Job.id).limit(limit)
    jobs = session.scalars(query.with_for_update(skip_locked=True)).all()
    for job in jobs:
        waits_for_data = job.queue == Queue.TRAIN and job.prepared_at is None
        phase = Phase.TOKENIZING if waits_for_data else Phase.WAITING
        move(session, job, [State.BLOCKED], State.QUEUED, now=now, phase=phase)
        note(session, job, "job_queued", "A secret was set; the job is tried again", now=now)
        ring(session, job, now=now)
    return [job.id for job in jobs]
