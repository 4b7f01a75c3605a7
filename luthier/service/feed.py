"""What a stream of events reads: how jobs stand, and what happened to them since a number.

A head is the part of a job's row that a stream shows, without its large columns. It is read first, and its
events after it: numbers are given under the row's lock, so that all below `next_number` are there by then.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from luthier.repository import IS_TRAINING
from luthier.status import LIVE
from luthier.tables import Job, JobEvent, Metric, in_state

Head = Row[Any]
Event = JobEvent | Metric

_COLUMNS = (
    Job.id,
    Job.project_id,
    Job.state,
    Job.phase,
    Job.name,
    Job.step,
    Job.total_steps,
    Job.progress,
    Job.run_count,
    Job.blocked_on,
    Job.not_before,
    Job.fine_tuned_model,
    Job.error_code,
    Job.error_message,
    Job.error_param,
    Job.error_details,
    Job.finished_at,
    Job.next_number,
)
_IDS_A_QUERY = 500


def find_heads(session: Session, job_ids: Collection[str]) -> list[Head]:
    """The training jobs of some ids that are there, in no order."""
    query = select(*_COLUMNS).where(IS_TRAINING, Job.deleted_at.is_(None))
    ids, found = sorted(job_ids), list[Head]()
    for start in range(0, len(ids), _IDS_A_QUERY):
        found.extend(session.execute(query.where(Job.id.in_(ids[start : start + _IDS_A_QUERY]))))
    return found


def list_heads(session: Session, project_id: str, *, ended_since: datetime) -> Sequence[Head]:
    """The training jobs of a project that have not ended, and those that ended since a time."""
    query = select(*_COLUMNS).where(Job.project_id == project_id, IS_TRAINING, Job.deleted_at.is_(None))
    live = session.execute(query.where(in_state(*LIVE))).all()
    ended = session.execute(query.where(Job.finished_at >= ended_since)).all()
    return [*live, *ended]
