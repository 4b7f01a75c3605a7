"""What the dispatcher does by the clock: lost leases and lost doorbells."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.service.endings import give_back
from luthier.service.transitions import ring
from luthier.status import LEASED, DesiredState, Kind, State
from luthier.tables import Job, Run


def sweep(session: Session, *, max_runs: int, now: datetime) -> list[str]:
    """Take back every job whose lease ran out (or has no end, which nothing may have); returns their ids."""
    lost = or_(Job.lease_expires_at < now, Job.lease_expires_at.is_(None))
    query = select(Job).where(Job.state.in_(LEASED), lost).with_for_update(skip_locked=True)
    return _give_back_all(session, session.scalars(query).all(), "The worker was lost", max_runs, now)


def release_previous(session: Session, worker_id: str, *, max_runs: int, now: datetime) -> list[str]:
    """Take back what an agent's previous instance held. Call it only with the device's lock in hand.

    The lock is inherited by the child process, so whoever gets it knows that the child is dead.
    """
    query = select(Job).where(
        Job.state.in_(LEASED), Job.lease_owner.startswith(f"{worker_id}#", autoescape=True)
    )
    jobs = session.scalars(query.with_for_update(skip_locked=True)).all()
    return _give_back_all(session, jobs, "The worker was restarted", max_runs, now)


def ring_forgotten(session: Session, *, older_than_seconds: float, now: datetime) -> int:
    """Ring again for queued jobs that nobody has claimed for a while; returns how many."""
    query = (
        select(Job)
        .where(Job.state == State.QUEUED, Job.desired_state == DesiredState.RUN)
        .where(or_(Job.kind != Kind.TRAIN, Job.prepared_at.is_not(None)))
        .where(Job.queued_at < now - timedelta(seconds=older_than_seconds))
    )
    jobs = session.scalars(query).all()
    for job in jobs:
        ring(session, job, now=now)
    return len(jobs)


def _give_back_all(
    session: Session, jobs: Sequence[Job], message: str, max_runs: int, now: datetime
) -> list[str]:
    for job in jobs:
        run = session.get(Run, (job.id, job.lease_epoch))
        if run is not None:
            run.outcome, run.ended_at = "lost", now
        give_back(session, job, message=message, max_runs=max_runs, now=now)
    return [job.id for job in jobs]
