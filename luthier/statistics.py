"""What `/metrics` counts, read from the rows, and so right for any number of API processes.

Histograms are counted by the database from the times of jobs: nothing has to be kept in memory. Counters are
sums over rows that nothing deletes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, extract, func, or_, select
from sqlalchemy.orm import Session

from luthier.status import FINAL, LEASED, LIVE, Kind, State
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
class JobCount:
    """How many training jobs there are of one kind."""

    state: State
    method: str
    error_code: str | None
    count: int


@dataclass(frozen=True)
class Durations:
    """A histogram: `counts[i]` durations of at most the i-th bound; the last one counts all."""

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    sum_seconds: float


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


@dataclass(frozen=True)
class Trained:
    """Tokens of ended jobs and steps of all jobs of a method; neither ever shrinks."""

    method: str
    tokens: int
    steps: int


_METHOD = Job.request[("qlora", "method")].as_string()
_CLAIMABLE_AT = func.coalesce(Job.prepared_at, Job.created_at)


def count_jobs(session: Session) -> list[JobCount]:
    """Training jobs of all projects by state, method and reason."""
    columns = (Job.state, _METHOD, Job.error_code)
    query = select(*columns, func.count()).where(Job.kind == Kind.TRAIN).group_by(*columns)
    return [
        JobCount(State(state), method, code, count) for state, method, code, count in session.execute(query)
    ]


def queue_waits(session: Session, bounds: Sequence[float]) -> list[Durations]:
    """From when a job could be claimed to its first claim, by queue; `bounds` in seconds, ascending."""
    query = select(Job.queue).where(Job.started_at.is_not(None)).group_by(Job.queue)
    return _durations(session, query, _CLAIMABLE_AT, Job.started_at, bounds)


def run_times(session: Session, bounds: Sequence[float]) -> list[Durations]:
    """From the first claim to the end of training jobs, by method and state."""
    query = select(_METHOD, Job.state).where(
        Job.kind == Kind.TRAIN, Job.started_at.is_not(None), Job.finished_at.is_not(None)
    )
    return _durations(session, query.group_by(_METHOD, Job.state), Job.started_at, Job.finished_at, bounds)


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
    """What waits to be sent, by topic; nothing for a topic of which all is sent."""
    columns = (func.count(), func.min(Outbox.created_at))
    query = select(Outbox.topic, *columns).where(Outbox.sent_at.is_(None)).group_by(Outbox.topic)
    return [Backlog(*row) for row in session.execute(query)]


def newest_step_at(session: Session) -> datetime | None:
    """When a running job last reported numbers; None without one."""
    newest = select(Metric.at).where(Metric.job_id == Job.id).order_by(Metric.number.desc()).limit(1)
    query = select(func.max(newest.scalar_subquery())).where(
        is_leased(), Job.state == State.RUNNING, Job.kind == Kind.TRAIN
    )
    return session.scalar(query)


def count_trained(session: Session) -> list[Trained]:
    """What has been trained in all, by method."""
    steps = select(func.max(Metric.step)).where(Metric.job_id == Job.id).scalar_subquery()
    reported = func.coalesce(Job.trained_tokens, Job.progress["trained_tokens"].as_integer(), 0)
    tokens = case((Job.state.in_(FINAL), reported), else_=0)
    query = select(_METHOD, func.sum(tokens), func.sum(func.coalesce(steps, 0))).where(Job.kind == Kind.TRAIN)
    return [Trained(method, int(t), int(s)) for method, t, s in session.execute(query.group_by(_METHOD))]


def count_validations(session: Session) -> dict[str, int]:
    """Ended validations of large files by result: valid, invalid, failed."""
    valid = Job.result["valid"].as_boolean()
    result = case((Job.state != State.SUCCEEDED, "failed"), (valid, "valid"), else_="invalid")
    query = (
        select(result, func.count()).where(Job.kind == Kind.VALIDATE, Job.state.in_(FINAL)).group_by(result)
    )
    return dict(session.execute(query).all())


def stored_bytes(session: Session) -> dict[str, int]:
    """Bytes that the rows speak of: files by purpose, checkpoints, artifacts."""
    files = select(File.purpose, func.sum(File.size_bytes)).group_by(File.purpose)
    found = {purpose: int(total) for purpose, total in session.execute(files)}
    found["checkpoints"] = int(session.scalar(select(func.sum(Checkpoint.size_bytes))) or 0)
    found["artifacts"] = int(session.scalar(select(func.sum(Artifact.size_bytes))) or 0)
    return found


def _durations(
    session: Session, grouped: Select[Any], start: Any, end: Any, bounds: Sequence[float]
) -> list[Durations]:
    seconds = _seconds_between(session, start, end)
    counts = [func.count().filter(seconds <= bound) for bound in bounds]
    width = len(grouped.selected_columns)
    rows = session.execute(grouped.add_columns(*counts, func.count(), func.sum(seconds))).all()
    return [Durations(tuple(row[:width]), tuple(row[width:-1]), float(row[-1])) for row in rows]


def _seconds_between(session: Session, start: Any, end: Any) -> ColumnElement[Any]:
    if session.get_bind().dialect.name == "sqlite":
        return (func.julianday(end) - func.julianday(start)) * 86400.0
    return extract("epoch", end - start)
