"""Which dispatcher is active: one row, held for a while, with an epoch that grows with each change.

The epoch fences: every write of a dispatcher stands in one transaction with `confirm`, so that one which was
stopped past its lease, and followed by another, writes nothing more once it goes on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.orm import Session

from luthier.tables import Leader

LEADER = "dispatcher"


class LeadershipLostError(Exception):
    """Another dispatcher leads by now, or our time was over before we came back. Write nothing."""


@dataclass(frozen=True)
class Leadership:
    """The right to act as the dispatcher; a new one for each time that a process comes to lead."""

    holder: str
    epoch: int


def may_lead(session: Session, holder: str, *, now: datetime) -> bool:
    """Whether it makes sense to ask to lead; without a lock, since those who wait ask often."""
    leader = session.get(Leader, LEADER)
    return leader is None or leader.holder == holder or _is_over(leader, now)


def lead(session: Session, holder: str, *, lease_seconds: float, now: datetime) -> Leadership | None:
    """Become or stay the active dispatcher; None where another one is.

    Whoever comes too late to renew, for it was stopped or the database was away, leads anew, with a new
    epoch: what it knew of leases may be as old as that.
    """
    leader = session.get(Leader, LEADER, with_for_update=True)
    if leader is None:
        leader = Leader(name=LEADER, epoch=0)
        session.add(leader)
    if _is_over(leader, now):
        leader.epoch, leader.holder = leader.epoch + 1, holder
    elif leader.holder != holder:
        return None
    leader.expires_at = now + timedelta(seconds=lease_seconds)
    session.flush()
    return Leadership(holder, leader.epoch)


def confirm(session: Session, leadership: Leadership, *, lease_seconds: float, now: datetime) -> None:
    """Make sure that a leadership stands until the end of this transaction.

    Nobody can take over meanwhile, so the transaction must be short; on Postgres the server ends it if its
    process stops in the middle of it for `lease_seconds`. (SQLite has one writer at a time in any case.)

    Args:
        now: of the database, read in this transaction: what the same transaction judges leases by.
    Raises:
        LeadershipLostError: it does not stand.
    """
    if session.get_bind().dialect.name == "postgresql":
        limit = text("SELECT set_config('idle_in_transaction_session_timeout', :milliseconds, true)")
        session.execute(limit, {"milliseconds": str(max(1, int(lease_seconds * 1000)))})
    mine = select(Leader.name).where(*_stands(leadership, now)).with_for_update(read=True)
    if session.execute(mine).scalar_one_or_none() is None:
        raise LeadershipLostError(leadership.holder)


def stands(session: Session, leadership: Leadership, *, now: datetime) -> bool:
    """Whether a leadership stands at this moment, without a lock."""
    return bool(session.scalar(select(func.count()).where(*_stands(leadership, now))))


def resign(session: Session, leadership: Leadership) -> None:
    """Let another one lead at once; nothing happens where one does already."""
    leader = session.get(Leader, LEADER, with_for_update=True)
    if leader is not None and (leader.holder, leader.epoch) == (leadership.holder, leadership.epoch):
        leader.expires_at = None


def _is_over(leader: Leader, now: datetime) -> bool:
    return leader.expires_at is None or leader.expires_at < now


def _stands(leadership: Leadership, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        Leader.name == LEADER,
        Leader.holder == leadership.holder,
        Leader.epoch == leadership.epoch,
        Leader.expires_at >= now,
    )
