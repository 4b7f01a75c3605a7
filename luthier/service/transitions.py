"""The writes that every use case is made of: begin a job, move it, note an event, ring a doorbell.

A move is one guarded UPDATE: it names the states that it may start from and, for whoever works on the job,
the lease. When no row fits, somebody else was faster, and the caller hears it. Every later change of state is
a move, so webhook endpoints are told of it there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import CursorResult, Table, insert, update
from sqlalchemy.orm import Session

from luthier.errors import Failure
from luthier.inserting import insert_rows, insert_values
from luthier.service.notifications import tell
from luthier.status import FINAL, LEASED, State, may_move
from luthier.tables import Job, JobEvent, Outbox
from luthier.waking import announce
from luthier.webhooks import TYPE_OF_STATE

# About the table: an object of each event costs several times as much, and nobody keeps these.
_INSERT_EVENTS = insert(cast(Table, JobEvent.__table__))
_INSERT_MESSAGE = insert(cast(Table, Outbox.__table__)).inline()


# Events by kind and message, the first one first.
Told = Sequence[tuple[str, str]]


class LeaseLostError(Exception):
    """The job is no longer ours: it was claimed anew, ended, or taken back. Publish nothing, stop."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a job: `epoch` fences every write."""

    job_id: str
    epoch: int
    owner: str


def held(lease: Lease) -> tuple[Any, ...]:
    """The condition under which a lease still stands."""
    return (
        Job.id == lease.job_id,
        Job.lease_epoch == lease.epoch,
        Job.lease_owner == lease.owner,
        Job.state.in_(LEASED),
    )


def move(
    session: Session,
    job: Job,
    before: Iterable[State],
    after: State,
    *,
    now: datetime,
    lease: Lease | None = None,
    failure: Failure | None = None,
    **values: Any,
) -> bool:
    """Take `job` from one of `before` to `after`; False where it is in another state by now.

    Leaving the leased states gives the lease back; entering a final one sets `finished_at`; a time or a thing
    that was waited for is forgotten with the state that waits for it. Webhook endpoints are told.

    Raises:
        LeaseLostError: a lease was given and no longer stands.
        ValueError: the move is not in `status.MOVES`; a defect of ours.
    """
    sources = list(before)
    for source in sources:
        if not may_move(source, after):
            raise ValueError(f"a job cannot go from {source} to {after}")
    if failure is not None:
        values |= {f"error_{name}": value for name, value in vars(failure).items()}
        values["error_details"] = list(failure.details) or None
    if after not in (State.RETRY_WAIT, State.BLOCKED):
        values["not_before"] = None
    if after != State.BLOCKED:
        values["blocked_on"] = None
    if after not in LEASED:
        values |= {"lease_owner": None, "lease_expires_at": None}
    if after in FINAL:
        values |= {"finished_at": now, "phase": None}
    if after == State.QUEUED:
        values |= {"queued_at": now}
    query = update(Job).where(Job.id == job.id, Job.state.in_(sources)).values(state=after, **values)
    if lease is not None:
        query = query.where(*held(lease))
    moved = _row_count(session.execute(query.execution_options(synchronize_session=False))) == 1
    if lease is not None and not moved:
        raise LeaseLostError(lease.job_id)
    session.refresh(job)
    if moved and after in TYPE_OF_STATE:
        tell(session, job, kind=TYPE_OF_STATE[after], number=job.next_number, now=now)
    return moved


def begin(session: Session, new: Sequence[tuple[Job, Told]]) -> None:
    """Insert new jobs with their first events, which are of the time when the job was made."""
    for job, told in new:
        job.next_number = len(told) + 1
    insert_rows(session, [job for job, _ in new])
    events = [
        _event_values(job, number, kind, message, job.created_at)
        for job, told in new
        for number, (kind, message) in enumerate(told, start=1)
    ]
    insert_values(session, _INSERT_EVENTS, events)


def note(
    session: Session,
    job: Job,
    kind: str,
    message: str,
    *,
    now: datetime,
    level: Literal["info", "warn", "error"] = "info",
    data: dict[str, Any] | None = None,
) -> JobEvent:
    """Store a fact about a job under its next number."""
    number = take_numbers(session, job.id, 1)
    event = JobEvent(**_event_values(job, number, kind, message, now, level=level, data=data))
    session.add(event)
    return event


def note_failure(
    session: Session, job: Job, failure: Failure, *, now: datetime, is_set_aside: bool = False
) -> None:
    """Store that a job has failed or was set aside, and why."""
    kind = "job_quarantined" if is_set_aside else "job_failed"
    note(session, job, kind, failure.message, now=now, level="error", data={"code": failure.code})


def take_numbers(session: Session, job_id: str, count: int) -> int:
    """The first of `count` numbers for events and metrics of a job; the row's lock keeps them in order."""
    query = update(Job).where(Job.id == job_id).values(next_number=Job.next_number + count)
    after = session.execute(
        query.returning(Job.next_number).execution_options(synchronize_session=False)
    ).scalar_one()
    return after - count


def ring(session: Session, *jobs: Job, now: datetime) -> None:
    """Promise a doorbell for each job's queue; the dispatcher sends them after the commit."""
    messages = [
        {
            "project_id": job.project_id,
            "topic": "doorbell",
            "key": job.queue,
            "payload": {"job_id": job.id},
            "created_at": now,
            "next_at": now,
        }
        for job in jobs
    ]
    if messages:
        insert_values(session, _INSERT_MESSAGE, messages)
        announce(session)


def _event_values(
    job: Job,
    number: int,
    kind: str,
    message: str,
    now: datetime,
    *,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "number": number,
        "project_id": job.project_id,
        "epoch": job.lease_epoch,
        "at": now,
        "kind": kind,
        "level": level,
        "message": message,
        "data": data or {},
    }


def _row_count(result: object) -> int:
    return cast("CursorResult[Any]", result).rowcount
