"""What one project may have at most: jobs that have not ended, jobs that run, bytes in storage.

Near a limit it is checked under the lock of the project's row, so that of many requests at once none slips
through; far from it, jobs are counted once a second. Claims respect `running_jobs` (see `claims`);
`storage_bytes` itself is kept by `luthier.accounts`. It stops uploads, and training jobs before they start;
what runs may go beyond it, so that nothing trained is lost.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Integer, bindparam, func, select
from sqlalchemy.orm import Session

from luthier.errors import LuthierError
from luthier.service.recent import Recent
from luthier.settings import Settings
from luthier.status import LIVE, Kind, Queue
from luthier.tables import Job, Project, in_state, is_leased

# Short enough for clients to wait it out: somebody's job may end. Room in storage is made by people.
_RETRY_QUEUED_SECONDS, _RETRY_STORAGE_SECONDS = 30, 3600


# Of a group by the column itself, SQLite would read all jobs in the order of their projects. Built once: each
# new job asks for it.
_PROJECT = Job.project_id.concat("")
_LEASED = (
    select(_PROJECT, func.count()).where(is_leased(), Job.queue == bindparam("queue")).group_by(_PROJECT)
)
_COUNT_LIVE = select(func.count()).select_from(
    select(Job.id)
    .where(in_state(*LIVE), Job.project_id == bindparam("project"), Job.kind == str(Kind.TRAIN))
    .limit(bindparam("most", type_=Integer))
    .subquery()
)
_OWN = select(Project.quotas).where(Project.id == bindparam("project"))
_LOCK = _OWN.with_for_update(key_share=True)
# More than all processes of the API could let in within the second that a count may be old.
_AMPLE = 2_000
_RECENT: Recent[int] = Recent()


@dataclass(frozen=True)
class QuotaLimits:
    """Limits of every project, or of one; None is no limit."""

    queued_jobs: int | None = None
    running_jobs: int | None = None
    storage_bytes: int | None = None

    def of(self, quotas: Mapping[str, Any] | None) -> "QuotaLimits":
        """These limits with what a project has of its own (`projects.quotas`)."""
        own = quotas or {}
        return replace(self, **{name: own[name] for name in vars(self) if name in own})


NO_LIMITS = QuotaLimits()


def limits_of(settings: Settings) -> QuotaLimits:
    """The limits of projects that have none of their own."""
    return QuotaLimits(settings.max_queued_jobs, settings.max_running_jobs, settings.max_storage_bytes)


def require_queue_room(session: Session, project_id: str, limits: QuotaLimits, *, entering: int = 0) -> None:
    """Let one more training job of the project in; near the limit, its row stays locked until the end.

    Args:
        entering: jobs that are let in already and not inserted yet.
    Raises:
        LuthierError: `quota_exceeded`.
    """
    if has_ample_room(session, project_id, limits):
        return
    limit = limits.of(lock_project(session, project_id)).queued_jobs
    if limit is None:
        return
    count = _count_live(session, project_id, limit) + entering
    if count >= limit:
        raise LuthierError(
            f"The project has {count} jobs that have not ended, and {limit} is its limit: wait until some "
            "have, or cancel some",
            "quota_exceeded",
            details=[{"loc": "queued_jobs", "message": "jobs that have not ended", "limit": limit}],
            retry_after_seconds=_RETRY_QUEUED_SECONDS,
        )


def has_ample_room(session: Session, project_id: str, limits: QuotaLimits) -> bool:
    """Whether a project was so far from its limit a second ago that it cannot have come to it."""
    quotas: Mapping[str, Any] | None = session.execute(_OWN, {"project": project_id}).scalar_one()
    limit = limits.of(quotas).queued_jobs
    if limit is None or limit <= _AMPLE:
        return limit is None
    count = _RECENT.get(session, lambda: _count_live(session, project_id, limit), about=(project_id, limit))
    return count + _AMPLE <= limit


def _count_live(session: Session, project_id: str, most: int) -> int:
    """Training jobs of a project that have not ended, counted up to a number."""
    return session.scalar(_COUNT_LIVE, {"project": project_id, "most": most}) or 0


def require_storage(session: Session, project_id: str, limits: QuotaLimits, *, more_bytes: int = 0) -> None:
    """Refuse what goes beyond the project's storage.

    After a flush of new rows, their bytes are counted and the project's row is locked by them: the check
    then holds until the commit. Before, `more_bytes` may tell what is to come, for an early answer.

    Raises:
        LuthierError: `quota_exceeded`.
    """
    session.flush()
    query = select(Project.storage_bytes, Project.quotas).where(Project.id == project_id)
    stored, quotas = session.execute(query).one()
    limit = limits.of(quotas).storage_bytes
    if limit is not None and stored + more_bytes > limit:
        raise LuthierError(
            f"With it, the project would have {stored + more_bytes:,} bytes in storage, and {limit:,} is its "
            "limit: delete files that no job needs any more",
            "quota_exceeded",
            details=[{"loc": "storage_bytes", "message": "bytes in storage", "limit": limit}],
            retry_after_seconds=_RETRY_STORAGE_SECONDS,
        )


def full_projects(session: Session, limits: QuotaLimits) -> dict[str, str]:
    """Projects that have used up their storage, each with what to tell its owners."""
    found = session.execute(select(Project.id, Project.storage_bytes, Project.quotas))
    held = [(id_, stored, limits.of(quotas).storage_bytes) for id_, stored, quotas in found]
    return {
        id_: f"The project has {stored:,} bytes in storage, and {limit:,} is its limit: delete files or jobs "
        "that nobody needs any more, and the job starts by itself"
        for id_, stored, limit in held
        if limit is not None and stored >= limit
    }


def lock_project(session: Session, project_id: str) -> Mapping[str, Any] | None:
    """Lock a project's row until the transaction ends, and tell its own limits.

    Rows that refer to the project can still be added meanwhile.
    """
    quotas: Mapping[str, Any] | None = session.execute(_LOCK, {"project": project_id}).scalar_one()
    return quotas


def count_leased(session: Session, queue: Queue, project_id: str | None = None) -> Counter[str]:
    """Work of a queue that somebody has claimed, by project."""
    query = _LEASED if project_id is None else _LEASED.where(Job.project_id == project_id)
    return Counter(dict(session.execute(query, {"queue": str(queue)}).all()))
