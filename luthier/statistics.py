"""What `/metrics` tells of now, read from the rows, and so right for any number of API processes.

What it counts over all jobs there ever were is in `job_sums`.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, case, func, or_, select
from sqlalchemy.orm import Session

from luthier.service.notifications import WEBHOOK
from luthier.status import LEASED, LIVE, Kind, State
from luthier.tables import (
    Artifact,
    Checkpoint,
    File,
    Job,
    Leader,
    Metric,
    Outbox,
    Worker,
    in_state,
    is_leased,
)


@dataclass(frozen=True)
class QueueLoad:
    """What waits in a queue and may be claimed, since when the oldest does, and what is being worked on."""

    queue: str
    depth: int
    oldest_at: datetime | None
    running: int


@dataclass(frozen=True)
class Backlog:
    """Messages of the outbox that have not been sent, and since when the oldest waits."""

    topic: str
    count: int
    oldest_at: datetime


_CLAIMABLE_AT = func.coalesce(Job.prepared_at, Job.created_at)


def queue_loads(session: Session) -> list[QueueLoad]:
    """The load of each queue that has any."""
    may_be_claimed = and_(
        Job.state == State.QUEUED, or_(Job.kind != Kind.TRAIN, Job.prepared_at.is_not(None))
    )
    query = (
        select(
            Job.queue,
            func.count().filter(may_be_claimed),
            func.min(_CLAIMABLE_AT).filter(may_be_claimed),
            func.count().filter(Job.state.in_(LEASED)),
        )
        .where(in_state(*LIVE), Job.state.in_([State.QUEUED, *LEASED]))
        .group_by(Job.queue)
    )
    return [QueueLoad(*row) for row in session.execute(query)]


def count_workers(session: Session, *, since: datetime) -> dict[str, int]:
    """Agents by queue that have been heard of since a time and did not say that they end."""
    query = select(Worker.queue, func.count()).where(Worker.heartbeat_at >= since, Worker.state != "stopped")
    return dict(session.execute(query.group_by(Worker.queue)).all())


def count_worker_states(session: Session, *, since: datetime) -> dict[tuple[str, str], int]:
    """Agents by queue and state that have been heard of since a time."""
    columns = (Worker.queue, Worker.state)
    query = select(*columns, func.count()).where(Worker.heartbeat_at >= since).group_by(*columns)
    return {(queue, state): count for queue, state, count in session.execute(query)}


def leads_until(session: Session) -> datetime | None:
    """Until when a dispatcher leads; None where none ever did."""
    return session.scalar(select(func.max(Leader.expires_at)))


def leader_epoch(session: Session) -> int:
    """How often a dispatcher came to lead."""
    return session.scalar(select(func.max(Leader.epoch))) or 0


def outbox_backlogs(session: Session) -> list[Backlog]:
    """What waits to be sent, by topic; nothing for a topic of which all is sent.

    A webhook that is tried again later does not wait before that: its target is to blame.
    """
    since = case((Outbox.topic == WEBHOOK, Outbox.next_at), else_=Outbox.created_at)
    columns = (func.count(), func.min(since))
    query = select(Outbox.topic, *columns).where(Outbox.sent_at.is_(None)).group_by(Outbox.topic)
    return [Backlog(*row) for row in session.execute(query)]


def newest_step_at(session: Session) -> datetime | None:
    """When a running job last reported numbers; None without one."""
    newest = select(Metric.at).where(Metric.job_id == Job.id).order_by(Metric.number.desc()).limit(1)
    query = select(func.max(newest.scalar_subquery())).where(
        is_leased(), Job.state == State.RUNNING, Job.kind == Kind.TRAIN
    )
    return session.scalar(query)


def stored_bytes(session: Session) -> dict[str, int]:
    """Bytes that the rows speak of: files by purpose, checkpoints, artifacts."""
    files = select(File.purpose, func.sum(File.size_bytes)).group_by(File.purpose)
    found = {purpose: int(total) for purpose, total in session.execute(files)}
    found["checkpoints"] = int(session.scalar(select(func.sum(Checkpoint.size_bytes))) or 0)
    found["artifacts"] = int(session.scalar(select(func.sum(Artifact.size_bytes))) or 0)
    return found
