"""Which version of a job somebody has seen: what `ETag`, `If-None-Match` and `If-Match` are made of.

It is taken from a few columns, without building what is shown. Its first part changes with what an owner
can change, so that a write based on an old look is noticed also while the job trains on; the second with all
else.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sqlalchemy import Connection, Text, bindparam, cast, select
from sqlalchemy.orm import Session

from luthier import __version__
from luthier.errors import not_found
from luthier.status import Kind
from luthier.tables import Job

_OF_OWNER = (Job.name, cast(Job.user_metadata, Text), Job.priority, Job.queue_key)
# Whatever has no column here changes only together with one that has: an event takes a number.
_OF_RUN = (
    Job.state,
    Job.phase,
    Job.next_number,
    Job.step,
    Job.total_steps,
    Job.run_count,
    Job.not_before,
    Job.blocked_on,
    Job.finished_at,
    cast(Job.progress, Text),
)
# Built once: to build a statement costs more than to run this one.
_QUERY = select(*_OF_OWNER, *_OF_RUN).where(
    Job.id == bindparam("job_id"),
    Job.project_id == bindparam("project_id"),
    Job.kind == str(Kind.TRAIN),
    Job.deleted_at.is_(None),
)


@dataclass(frozen=True)
class Version:
    """Two hashes, and the state that the job is in."""

    of_owner: str
    of_run: str
    state: str


def get_version(session: Session | Connection, project_id: str, job_id: str) -> Version:
    """The version of a training job.

    Raises:
        LuthierError: `fine_tune_not_found`, also for a job of somebody else.
    """
    row = session.execute(_QUERY, {"job_id": job_id, "project_id": project_id}).one_or_none()
    if row is None:
        raise not_found("fine-tuning job", job_id, "fine_tune_not_found", "fine_tune_id")
    values = tuple(row)
    owner, run = values[: len(_OF_OWNER)], values[len(_OF_OWNER) :]
    return Version(_hash(owner), _hash((__version__, *run)), run[0])


def _hash(values: Any) -> str:
    return blake2b(repr(values).encode(), digest_size=8).hexdigest()
