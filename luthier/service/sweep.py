"""What the dispatcher does by the clock: lost leases, and waits that are over."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.service.endings import requeue_run
from luthier.service.retries import Ending, Limits
from luthier.service.transitions import Lease, move, note, ring
from luthier.service.watching import IS_LEASED, IS_WAITING, is_lost
from luthier.status import DesiredState, Phase, State
from luthier.tables import Job

# Steps of the golden ratio spread any number of jobs evenly over the wait, whatever the first one drew.
_SPREAD = 0.618034


def sweep(
    session: Session, *, limits: Limits, jitter: float, now: datetime, at_most: int | None
) -> list[str]:
    """Take back jobs whose lease ran out (or has no end, which nothing may have); returns their ids.

    Args:
        jitter: in [0, 1); of the first job, the others follow at a distance.
        at_most: how many may be taken back, the one that is lost for longest first; None for all.
    """
    query = select(Job).where(is_lost(now)).order_by(Job.lease_expires_at, Job.id)
    jobs = session.scalars(query.limit(at_most).with_for_update(skip_locked=True)).all()
    return _take_back(session, jobs, "The worker was lost", limits=limits, jitter=jitter, now=now)


def release_previous(
    session: Session,
    worker_id: str,
    *,
    limits: Limits,
    jitter: float,
    now: datetime,
    living: Collection[str] = (),
) -> list[str]:
    """Take back what an agent's previous instance held. Call it only with the device's lock in hand.

    The lock is inherited by the child process, so whoever gets it knows that the child is dead.

    Args:
        living: jobs of which something lives all the same; those of them that are to be cancelled stay.
    """
    may_go = or_(Job.desired_state != DesiredState.CANCEL, Job.id.not_in(living))
    query = select(Job).where(IS_LEASED, may_go)
    query = query.where(Job.lease_owner.startswith(f"{worker_id}#", autoescape=True))
    jobs = session.scalars(query.with_for_update(skip_locked=True)).all()
    return _take_back(session, jobs, "The worker was restarted", limits=limits, jitter=jitter, now=now)


def wake_waiting(session: Session, *, now: datetime, limit: int) -> list[str]:
    """Queue jobs whose wait is over; returns their ids."""
    query = select(Job).where(IS_WAITING, Job.state == State.RETRY_WAIT, Job.not_before <= now)
    query = query.order_by(Job.not_before, Job.id).limit(limit)
    jobs = session.scalars(query.with_for_update(skip_locked=True)).all()
    for job in jobs:
        move(session, job, [State.RETRY_WAIT], State.QUEUED, now=now, phase=Phase.WAITING)
        note(session, job, "job_queued", "The wait is over; the job is tried again", now=now)
        ring(session, job, now=now)
    return [job.id for job in jobs]


def _take_back(
    session: Session, jobs: Sequence[Job], message: str, *, limits: Limits, jitter: float, now: datetime
) -> list[str]:
    for index, job in enumerate(jobs):
        requeue_run(
            session,
            Lease(job.id, job.lease_epoch, job.lease_owner or ""),
            ending=Ending.LOST,
            message=message,
            exit_code=None,
            limits=limits,
            jitter=(jitter + index * _SPREAD) % 1,
            now=now,
        )
    return [job.id for job in jobs]
