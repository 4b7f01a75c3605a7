"""Doorbells for work that nobody rang for, or whose doorbell was lost.

A doorbell means "look into the database", so what counts is that every idle worker hears one, not that every
job has one: there are never more of them than workers.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from luthier.service.transitions import ring
from luthier.status import DesiredState, Kind, Queue, State
from luthier.tables import Job, Outbox

DOORBELL = "doorbell"


def ring_forgotten(
    session: Session, *, older_than_seconds: float, listeners: Mapping[str, int], now: datetime
) -> int:
    """Ring again on each queue whose work nobody has claimed for a while; returns how many doorbells.

    A queue with a doorbell that still waits to be sent gets no other, so an absent broker makes no rows.

    Args:
        listeners: workers by queue; no more doorbells than that, and one where none is known.
    """
    count = 0
    for queue in Queue:
        if _has_unsent(session, queue):
            continue
        query = (
            select(Job)
            .where(Job.queue == queue, Job.state == State.QUEUED, Job.desired_state == DesiredState.RUN)
            .where(or_(Job.not_before.is_(None), Job.not_before <= now))
            .where(or_(Job.kind != Kind.TRAIN, Job.prepared_at.is_not(None)))
            .where(Job.queued_at < now - timedelta(seconds=older_than_seconds))
            .limit(max(1, listeners.get(queue, 0)))
        )
        forgotten = session.scalars(query).all()
        for job in forgotten:
            ring(session, job, now=now)
        count += len(forgotten)
    return count


def _has_unsent(session: Session, queue: Queue) -> bool:
    unsent = exists().where(Outbox.sent_at.is_(None), Outbox.topic == DOORBELL, Outbox.key == queue)
    return bool(session.scalar(select(unsent)))
