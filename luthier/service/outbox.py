"""Messages that transactions promised: the dispatcher sends them at least once, and notes that it did."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from luthier.tables import Outbox


def due_messages(session: Session, *, topic: str, limit: int, now: datetime) -> Sequence[Outbox]:
    """Messages of a topic that have not been sent and may be tried now, oldest first."""
    query = select(Outbox).where(Outbox.sent_at.is_(None), Outbox.topic == topic, Outbox.next_at <= now)
    return session.scalars(query.order_by(Outbox.next_at, Outbox.id).limit(limit)).all()


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


def try_at(session: Session, message_id: int, next_at: datetime) -> None:
    """Try one message again at a time of its own."""
    query = update(Outbox).where(Outbox.id == message_id).values(tries=Outbox.tries + 1, next_at=next_at)
    session.execute(query.execution_options(synchronize_session=False))


def forget_sent(session: Session, *, older_than: timedelta, limit: int, now: datetime) -> int:
    """Delete messages that went out long ago; returns how many, at most `limit`."""
    old = select(Outbox.id).where(Outbox.sent_at < now - older_than)
    ids = session.scalars(old.order_by(Outbox.sent_at).limit(limit)).all()
    if ids:
        query = delete(Outbox).where(Outbox.id.in_(ids))
        session.execute(query.execution_options(synchronize_session=False))
    return len(ids)
