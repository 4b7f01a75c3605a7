"""What the dispatcher does by the clock: lost leases, lost doorbells, and which dispatcher leads."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from luthier.service.runs import give_back
from luthier.status import LEASED
from luthier.tables import Job, Leader, Outbox, Run

LEADER = "dispatcher"


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


def due_messages(session: Session, *, topic: str, limit: int, now: datetime) -> Sequence[Outbox]:
    """Messages of a topic that have not been sent and may be tried now, oldest first."""
    query = select(Outbox).where(Outbox.sent_at.is_(None), Outbox.topic == topic, Outbox.next_at <= now)
    return session.scalars(query.order_by(Outbox.id).limit(limit)).all()


def record_sent(session: Session, message_ids: Sequence[int], *, now: datetime) -> None:
    """Note that messages went out."""
    query = update(Outbox).where(Outbox.id.in_(message_ids)).values(sent_at=now)
    session.execute(query.execution_options(synchronize_session=False))


def postpone(session: Session, message_ids: Sequence[int], *, seconds: float, now: datetime) -> None:
    """Try messages again later."""
    query = (
        update(Outbox)
        .where(Outbox.id.in_(message_ids))
        .values(tries=Outbox.tries + 1, next_at=now + timedelta(seconds=seconds))
    )
    session.execute(query.execution_options(synchronize_session=False))


def forget_sent(session: Session, *, older_than_seconds: float, now: datetime) -> None:
    """Delete messages that went out long ago."""
    query = delete(Outbox).where(Outbox.sent_at < now - timedelta(seconds=older_than_seconds))
    session.execute(query.execution_options(synchronize_session=False))


def lead(session: Session, holder: str, *, lease_seconds: float, now: datetime) -> tuple[bool, bool]:
    """Become or stay the active dispatcher; returns whether we are, and whether we became it just now."""
    leader = session.scalars(select(Leader).where(Leader.name == LEADER).with_for_update()).one_or_none()
    if leader is None:
        leader = Leader(name=LEADER, epoch=0)
        session.add(leader)
    expired = leader.expires_at is None or leader.expires_at < now
    if leader.holder != holder and not expired:
        return False, False
    became = leader.holder != holder
    leader.epoch = (leader.epoch or 0) + (1 if became else 0)
    leader.holder, leader.expires_at = holder, now + timedelta(seconds=lease_seconds)
    return True, became


def _give_back_all(
    session: Session, jobs: Sequence[Job], message: str, max_runs: int, now: datetime
) -> list[str]:
    for job in jobs:
        run = session.get(Run, (job.id, job.lease_epoch))
        if run is not None:
            run.outcome, run.ended_at = "lost", now
        give_back(session, job, message=message, max_runs=max_runs, now=now)
    return [job.id for job in jobs]
