"""What agents do to get work: look whether there is some, and claim the next job of a queue.

A claim is one guarded move: of two agents that want the same job, one gets it and the other looks on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, and_, case, or_, select, true
from sqlalchemy.orm import Session

from luthier.service import errands
from luthier.service.transitions import Lease, move
from luthier.status import LEASED, DesiredState, Kind, Phase, Queue, State
from luthier.tables import Job, Run

_PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class Claim:
    """A job that is now ours: its row as it was claimed, the lease, and the number of the attempt."""

    job: Job
    lease: Lease
    number: int


def claim(
    session: Session,
    queue: Queue,
    *,
    owner: str,
    host: str,
    device: str,
    lease_seconds: float,
    now: datetime,
    errands_only: bool = False,
) -> Claim | None:
    """Take the next job of a queue, or None where there is nothing to do.

    A training job can be taken once its data is prepared. Whoever comes second on Postgres skips locked rows;
    SQLite has one writer at a time.
    """
    query = _claimable(queue, now, errands_only=errands_only).with_for_update(skip_locked=True)
    job = session.scalars(query).one_or_none()
    if job is None:
        return None
    taken = move(
        session,
        job,
        [State.QUEUED],
        State.STARTING,
        now=now,
        phase=Phase.WAITING,
        lease_owner=owner,
        lease_epoch=job.lease_epoch + 1,
        lease_expires_at=now + timedelta(seconds=lease_seconds),
        run_count=job.run_count + 1,
        started_at=job.started_at or now,
    )
    if not taken:
        return None
    session.add(
        Run(
            job_id=job.id,
            epoch=job.lease_epoch,
            project_id=job.project_id,
            number=job.run_count,
            worker_id=owner,
            host=host,
            device=device,
            started_at=now,
        )
    )
    return Claim(job, Lease(job.id, job.lease_epoch, owner), job.run_count)


def has_work(
    session: Session, queue: Queue, worker_id: str, *, now: datetime, errands_only: bool = False
) -> bool:
    """Whether a claim may find something, or a previous instance of this agent left something. No write."""
    left = select(Job.id).where(
        Job.state.in_(LEASED), Job.lease_owner.startswith(f"{worker_id}#", autoescape=True)
    )
    return (
        session.scalars(_claimable(queue, now, errands_only=errands_only)).one_or_none() is not None
        or session.scalars(left.limit(1)).one_or_none() is not None
    )


def _claimable(queue: Queue, now: datetime, *, errands_only: bool) -> Select[Job]:
    # Errands go first, but not for ever: what has waited long enough is as urgent as they are, and older.
    waited = and_(Job.queue == Queue.CPU, Job.queued_at < now - timedelta(seconds=_PATIENCE_SECONDS))
    urgency = case((and_(waited, Job.priority < errands.PRIORITY), errands.PRIORITY), else_=Job.priority)
    kinds = Job.work_key.is_not(None) if errands_only else true()
    return (
        select(Job)
        .where(kinds)
        .where(Job.queue == queue, Job.state == State.QUEUED, Job.desired_state == DesiredState.RUN)
        .where(or_(Job.not_before.is_(None), Job.not_before <= now))
        .where(or_(Job.kind != Kind.TRAIN, Job.prepared_at.is_not(None)))
        .order_by(urgency.desc(), Job.created_at, Job.id)
        .limit(1)
    )
