"""Which dispatcher is active: one row, held for a while, with an epoch that grows with each change."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier.tables import Leader

_LEADER = "dispatcher"


def lead(session: Session, holder: str, *, lease_seconds: float, now: datetime) -> tuple[bool, bool]:
    """Become or stay the active dispatcher; returns whether we are, and whether we became it just now."""
    leader = session.scalars(select(Leader).where(Leader.name == _LEADER).with_for_update()).one_or_none()
    if leader is None:
        leader = Leader(name=_LEADER, epoch=0)
        session.add(leader)
    expired = leader.expires_at is None or leader.expires_at < now
    if leader.holder != holder and not expired:
        return False, False
    became = leader.holder != holder
    leader.epoch = (leader.epoch or 0) + (1 if became else 0)
    leader.holder, leader.expires_at = holder, now + timedelta(seconds=lease_seconds)
    return True, became


def is_leader(session: Session, holder: str, *, now: datetime) -> bool:
    """Whether a dispatcher still leads, read without a write."""
    leader = session.get(Leader, _LEADER)
    if leader is None or leader.expires_at is None:
        return False
    return leader.holder == holder and leader.expires_at >= now
