"""What agents do to get work: look whether there is some, and claim the next job of a queue.

A claim is one guarded move: of two agents that want the same job, one gets it and the other the next one.
Projects take turns: first the one with the fewest jobs at work, of equals the one that was not served for
longest; within a project the place in its queue decides. The head of each project is one look into an index,
whatever the length of its queue.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from luthier.service.queue_order import END_OF_ERRANDS
from luthier.service.quotas import NO_LIMITS, QuotaLimits, count_leased, lock_project
from luthier.service.transitions import Lease, move
from luthier.status import DesiredState, Phase, Queue, State
from luthier.tables import Job, Project, Run, is_claimable, is_leased

_PATIENCE_SECONDS = 30
# Made once: each alias learns the table's columns anew.
_HEAD = aliased(Job)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Claim:
    """A job that is now ours: its row as it was claimed, the lease, and the number of the attempt."""

    job: Job
    lease: Lease
    number: int


@dataclass(frozen=True)
class Offer:
    """What a device has for a job.

    Attributes:
        free_memory_bytes: free now, whoever uses the rest; None where it is not counted, as on the CPU.
        gpu_count: devices that one job may have; 1 on the CPU.
        labels: that the worker carries.
    """

    free_memory_bytes: int | None = None
    gpu_count: int = 1
    labels: frozenset[str] = frozenset()


ANY_DEVICE = Offer()


@dataclass(frozen=True)
class _Line:
    """The work of one project that could be claimed: its first job, and what its turn depends on."""

    project_id: str
    wanted: ColumnElement[bool] = field(compare=False)
    running_limit: int | None
    has_storage: bool
    leased: int
    turn_at: datetime
    queue_key: int
    job_id: str
    created_at: datetime
    queued_at: datetime

    @property
    def turn(self) -> tuple[int, datetime, int, str]:
        return (self.leased, self.turn_at, self.queue_key, self.job_id)

    @property
    def may_run(self) -> bool:
        """Whether the limits of the project leave room for one more."""
        return self.has_storage and (self.running_limit is None or self.leased < self.running_limit)


def claim(
    session: Session,
    queue: Queue,
    *,
    owner: str,
    host: str,
    device: str,
    lease_seconds: float,
    now: datetime,
    offer: Offer = ANY_DEVICE,
    limits: QuotaLimits = NO_LIMITS,
    errands_only: bool = False,
) -> Claim | None:
    """Take the next job of a queue that fits what is offered, or None where there is nothing to do.

    A training job can be taken once its data is prepared. Whoever comes second on Postgres skips locked rows;
    SQLite has one writer at a time.
    """
    wanted = _wanted(queue, offer, now)
    for line in _in_turn(session, queue, wanted, limits, now, errands_only=errands_only):
        job = _lock_first(session, queue, line)
        if job is not None and _start(session, job, owner, lease_seconds, now):
            _note_turn(session, queue, job.project_id, now)
            session.add(_run_of(job, owner, host, device, now))
            return Claim(job, Lease(job.id, job.lease_epoch, owner), job.run_count)
    return None


def has_work(
    session: Session,
    queue: Queue,
    worker_id: str,
    *,
    now: datetime,
    offer: Offer = ANY_DEVICE,
    limits: QuotaLimits = NO_LIMITS,
    errands_only: bool = False,
) -> bool:
    """Whether a claim may find something, or a previous instance of this agent left something. No write."""
    wanted = _wanted(queue, offer, now)
    lines = _in_turn(session, queue, wanted, limits, now, errands_only=errands_only)
    return next(lines, None) is not None or has_left(session, worker_id)


def has_left(session: Session, worker_id: str) -> bool:
    """Whether instances of an agent hold leases: this one, or what a previous one left."""
    left = select(Job.id).where(is_leased(), Job.lease_owner.startswith(f"{worker_id}#", autoescape=True))
    return session.scalars(left.limit(1)).one_or_none() is not None


def _wanted(queue: Queue, offer: Offer, now: datetime) -> ColumnElement[bool]:
    """The condition that a job can be claimed for what is offered."""
    conditions = [
        is_claimable(queue),
        Job.desired_state == DesiredState.RUN,
        or_(Job.not_before.is_(None), Job.not_before <= now),
    ]
    if queue == Queue.TRAIN:
        conditions += [Job.gpu_count <= offer.gpu_count, _fits_labels(offer)]
        if offer.free_memory_bytes is not None:
            conditions.append(or_(Job.memory_bytes.is_(None), Job.memory_bytes <= offer.free_memory_bytes))
    return and_(*conditions)


def _fits_labels(offer: Offer) -> ColumnElement[bool]:
    """That every label of the job is one of the offer: with those taken out of its list, nothing is left."""
    rest: ColumnElement[str] = literal(",").concat(Job.labels).concat(",")
    for label in sorted(offer.labels):
        rest = func.replace(rest, f",{label},", ",")
    return or_(Job.labels == "", rest == ",")


def _in_turn(
    session: Session,
    queue: Queue,
    wanted: ColumnElement[bool],
    limits: QuotaLimits,
    now: datetime,
    *,
    errands_only: bool,
) -> Iterator[_Line]:
    """Projects that have work and may have it done, in the order in which they are served."""
    leased = count_leased(session, queue)
    if queue == Queue.TRAIN:
        yield from _lines(session, queue, wanted, limits, leased)
        return
    errands = _lines(session, queue, and_(wanted, Job.queue_key < END_OF_ERRANDS), limits, leased)
    if errands_only:
        yield from errands
        return
    others = _lines(session, queue, and_(wanted, Job.queue_key >= END_OF_ERRANDS), limits, leased)
    # Errands go first, but not for ever: what has waited long enough is as urgent as they are, and older.
    patience_ends = now - timedelta(seconds=_PATIENCE_SECONDS)
    has_waited = bool(others and errands) and (
        others[0].queued_at < patience_ends and others[0].created_at < errands[0].created_at
    )
    yield from [*others, *errands] if has_waited else [*errands, *others]


def _lines(
    session: Session,
    queue: Queue,
    wanted: ColumnElement[bool],
    limits: QuotaLimits,
    leased: Mapping[str, int],
) -> list[_Line]:
    """The first job of each project that has one and is below its limits, in the order of turns."""
    first = _first_of(select(Job.id), wanted, Project.id).correlate(Project).scalar_subquery()
    query = (
        select(
            Project.id,
            Project.quotas,
            Project.storage_bytes,
            _turn_column(queue),
            _HEAD.queue_key,
            _HEAD.id,
            _HEAD.created_at,
            _HEAD.queued_at,
        )
        .select_from(Project)
        .join(_HEAD, _HEAD.id == first)
    )
    lines = (_line_of(row, queue, wanted, limits, leased) for row in session.execute(query))
    return sorted((line for line in lines if line.may_run), key=lambda line: line.turn)


def _first_of(query: Select[Any], wanted: ColumnElement[bool], project_id: Any) -> Select[Any]:
    return query.where(wanted, Job.project_id == project_id).order_by(Job.queue_key, Job.id).limit(1)


def _line_of(
    row: Row[*tuple[Any, ...]],
    queue: Queue,
    wanted: ColumnElement[bool],
    limits: QuotaLimits,
    leased: Mapping[str, int],
) -> _Line:
    project_id, quotas, stored, turn_at, queue_key, job_id, created_at, queued_at = row
    own = limits.of(quotas) if queue == Queue.TRAIN else NO_LIMITS
    return _Line(
        project_id=project_id,
        wanted=wanted,
        running_limit=own.running_jobs,
        has_storage=own.storage_bytes is None or stored < own.storage_bytes,
        leased=leased.get(project_id, 0),
        turn_at=turn_at or _LONG_AGO,
        queue_key=queue_key,
        job_id=job_id,
        created_at=created_at,
        queued_at=queued_at or created_at,
    )


def _lock_first(session: Session, queue: Queue, line: _Line) -> Job | None:
    """The first job of a project that nobody else is about to take; None also where its limit is reached."""
    if line.running_limit is not None:
        lock_project(session, line.project_id)
        if count_leased(session, queue, line.project_id)[line.project_id] >= line.running_limit:
            return None
    query = _first_of(select(Job), line.wanted, line.project_id).with_for_update(skip_locked=True)
    job: Job | None = session.scalars(query).one_or_none()
    return job


def _start(session: Session, job: Job, owner: str, lease_seconds: float, now: datetime) -> bool:
    return move(
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


def _run_of(job: Job, owner: str, host: str, device: str, now: datetime) -> Run:
    return Run(
        job_id=job.id,
        epoch=job.lease_epoch,
        project_id=job.project_id,
        number=job.run_count,
        worker_id=owner,
        host=host,
        device=device,
        started_at=now,
    )


def _note_turn(session: Session, queue: Queue, project_id: str, now: datetime) -> None:
    """Note that a project was served. Where its row is busy it is left out: no claim waits for another."""
    free = (
        select(Project.id).where(Project.id == project_id).with_for_update(skip_locked=True, key_share=True)
    )
    query = update(Project).where(Project.id == free.scalar_subquery())
    session.execute(query.values({_turn_column(queue).key: now}).execution_options(synchronize_session=False))


def _turn_column(queue: Queue) -> Any:
    return Project.train_turn_at if queue == Queue.TRAIN else Project.cpu_turn_at
