"""What the dispatcher looks at in every round before it writes: cheap reads over the indexes of live states.

Nothing here writes or locks, but for the jobs that are to be told something.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from luthier.service.workers import SICK
from luthier.status import LEASED, BlockedOn, DesiredState, Kind, State
from luthier.tables import Job, Worker, in_state

RETRY = "retry"
# Also what has no end of its lease, which nothing may have.
IS_LEASED = in_state(*LEASED)
IS_WAITING = in_state(State.RETRY_WAIT, State.BLOCKED)


def is_lost(now: datetime) -> ColumnElement[bool]:
    """The condition that a lease ran out, or has no end.

    That of a worker which is set aside is not lost where the job is to be cancelled: a process may live that
    nothing ends, and `cancelled` says that none does. The worker's host finds out, or an operator, who then
    releases the worker.
    """
    ran_out = or_(Job.lease_expires_at < now, Job.lease_expires_at.is_(None))
    is_holder = func.substr(Job.lease_owner, 1, func.length(Worker.id) + 1) == Worker.id.concat("#")
    is_held = select(Worker.id).where(Worker.state == SICK, is_holder).exists()
    return and_(IS_LEASED, ran_out, or_(Job.desired_state != DesiredState.CANCEL, ~is_held))


def lost_leases(session: Session, *, limit: int, now: datetime) -> list[tuple[str, int]]:
    """Jobs whose lease ran out, with their epochs; those that ran out first come first."""
    query = select(Job.id, Job.lease_epoch).where(is_lost(now))
    found = session.execute(query.order_by(Job.lease_expires_at).limit(limit))
    return [(job_id, epoch) for job_id, epoch in found]


def count_leased(session: Session) -> int:
    """Jobs that somebody works on."""
    return session.scalar(select(func.count()).select_from(Job).where(IS_LEASED)) or 0


def leased_training(session: Session, *, limit: int) -> Sequence[Job]:
    """Some of the training jobs that somebody works on; their rows are locked."""
    query = select(Job).where(IS_LEASED, Job.kind == Kind.TRAIN).order_by(Job.id).limit(limit)
    return session.scalars(query.with_for_update(skip_locked=True)).all()


def has_due(session: Session, *, now: datetime) -> bool:
    """Whether a job that waits to be tried again, or for a model, may be tried by now."""
    is_timed = or_(Job.blocked_on.is_(None), Job.blocked_on == BlockedOn.MODEL)
    query = select(Job.id).where(IS_WAITING, is_timed, Job.not_before <= now)
    return session.scalar(query.limit(1)) is not None


def has_blocked(session: Session, *, blocked_on: str) -> bool:
    """Whether a job waits for something to be there again."""
    query = select(Job.id).where(IS_WAITING, Job.state == State.BLOCKED, Job.blocked_on == blocked_on)
    return session.scalar(query.limit(1)) is not None


def count_waiting(session: Session) -> dict[str, int]:
    """Jobs that wait for something other than a worker, by what that is: `RETRY`, or a `BlockedOn`."""
    query = select(Job.state, Job.blocked_on, func.count()).where(IS_WAITING)
    found = session.execute(query.group_by(Job.state, Job.blocked_on))
    return {blocked_on or RETRY: count for _, blocked_on, count in found}
