"""Jobs that wait for something, and how they go on once it is there again.

A job is blocked by the run that found the thing missing (`endings`), or, where its project has no room left
in storage, while it is queued. It goes on when the dispatcher sees that there is room again, on the disk or
in the quota; a model is tried again when its time has come, or when another run has got it.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from luthier import repository
from luthier.service.transitions import move, note, ring
from luthier.service.watching import IS_WAITING
from luthier.status import BlockedOn, DesiredState, Phase, Queue, State
from luthier.tables import Job, is_claimable

_OVER = {
    BlockedOn.DISK: "There is room on the disk again",
    BlockedOn.QUOTA: "The project has room in storage again",
    BlockedOn.MODEL: "The base model is tried again",
    BlockedOn.SECRET: "A secret was set; the job is tried again",
}


def tell(session: Session, job: Job, message: str, *, now: datetime) -> None:
    """Store that a job is blocked, and why."""
    data = {"blocked_on": job.blocked_on}
    note(session, job, "job_blocked", message, now=now, level="warn", data=data)


def block_dependent(session: Session, work: Job, message: str, *, now: datetime) -> None:
    """Have the training job of a blocked preparation wait, too, so that it shows why it does not start."""
    if work.subject_job_id is None or work.task is not None:
        return
    job = repository.find_job(session, work.subject_job_id)
    if job is not None:
        _block(session, job, work.blocked_on, work.not_before, message, now=now)


def block_queued(session: Session, reasons: Mapping[str, str], *, now: datetime, limit: int) -> list[str]:
    """Have training jobs wait that could be claimed, were their project not over its quota of storage.

    Args:
        reasons: what to tell of it, by project.
    Returns:
        Their ids.
    """
    query = select(Job).where(is_claimable(Queue.TRAIN), Job.desired_state == DesiredState.RUN)
    query = query.where(Job.project_id.in_(reasons)).order_by(Job.project_id, Job.queue_key, Job.id)
    jobs = session.scalars(query.limit(limit).with_for_update(skip_locked=True)).all()
    for job in jobs:
        _block(session, job, BlockedOn.QUOTA, now, reasons[job.project_id], now=now)
    return [job.id for job in jobs]


def unblock(
    session: Session,
    *,
    blocked_on: BlockedOn,
    now: datetime,
    limit: int,
    except_projects: Collection[str] = (),
) -> list[str]:
    """Queue jobs that waited for what is there again, in the order of their queue; returns their ids.

    No budget is used: being blocked was no fault of theirs. Each waits a little in any case, so that a job
    which needs more than there is does not go round in a circle.

    Args:
        except_projects: for which it is not there yet.
    """
    query = _blocked(blocked_on).where(or_(Job.not_before.is_(None), Job.not_before <= now))
    if except_projects:
        query = query.where(Job.project_id.not_in(except_projects))
    return _queue_again(session, query, blocked_on, now=now, limit=limit)


def unblock_model(session: Session, model: str, *, now: datetime, limit: int) -> list[str]:
    """Queue jobs that waited for a base model which has come, whatever time they had to wait; their ids."""
    query = _blocked(BlockedOn.MODEL).where(Job.model == model)
    return _queue_again(session, query, BlockedOn.MODEL, now=now, limit=limit)


def unblock_secret(session: Session, project_id: str, *, now: datetime, limit: int) -> list[str]:
    """Queue a project's jobs that waited for a secret, which was set now; returns their ids."""
    query = _blocked(BlockedOn.SECRET).where(Job.project_id == project_id)
    return _queue_again(session, query, BlockedOn.SECRET, now=now, limit=limit)


def _block(
    session: Session,
    job: Job,
    blocked_on: str | None,
    not_before: datetime | None,
    message: str,
    *,
    now: datetime,
) -> None:
    if move(
        session,
        job,
        [State.QUEUED],
        State.BLOCKED,
        now=now,
        blocked_on=blocked_on,
        not_before=not_before,
        phase=Phase.WAITING,
    ):
        tell(session, job, message, now=now)


def _blocked(blocked_on: BlockedOn) -> Select[Any]:
    return select(Job).where(IS_WAITING, Job.state == State.BLOCKED, Job.blocked_on == blocked_on)


def _queue_again(
    session: Session, query: Select[Any], blocked_on: BlockedOn, *, now: datetime, limit: int
) -> list[str]:
    query = query.order_by(Job.queue_key, Job.id).limit(limit)
    jobs: Sequence[Job] = session.scalars(query.with_for_update(skip_locked=True)).all()
    for job in jobs:
        waits_for_data = job.queue == Queue.TRAIN and job.prepared_at is None
        phase = Phase.TOKENIZING if waits_for_data else Phase.WAITING
        move(session, job, [State.BLOCKED], State.QUEUED, now=now, phase=phase)
        note(session, job, "job_queued", _OVER[blocked_on], now=now)
        ring(session, job, now=now)
    return [job.id for job in jobs]
