"""What the dispatcher does by the clock: lost leases."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.service.endings import give_back
from luthier.status import LEASED
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


def _give_back_all(
    session: Session, jobs: Sequence[Job], message: str, max_runs: int, now: datetime
) -> list[str]:
    for job in jobs:
        run = session.get(Run, (job.id, job.lease_epoch))
        if run is not None:
            run.outcome, run.ended_at = "lost", now
        give_back(session, job, message=message, max_runs=max_runs, now=now)
    return [job.id for job in jobs]
