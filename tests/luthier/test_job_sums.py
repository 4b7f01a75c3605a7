"""Sums over all jobs that read what has ended only once."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.job_sums import JobCount, JobSums
from luthier.service import control
from luthier.status import State
from luthier.tables import Job
from tests.factories import NOW, create_job, create_tuned_job

HOUR = timedelta(hours=1)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _count(sums: JobSums, session: Session, hours: int) -> dict[State, int]:
    return {found.state: found.count for found in sums.read(session, now=NOW + hours * HOUR).counts()}


def test_a_job_is_counted_once_before_and_after_it_has_settled(session: Session) -> None:
    sums = JobSums([60])
    create_tuned_job(session)
    live = create_job(session, "ftjob-2")
    before = [_count(sums, session, hours) for hours in (0, 1, 2)]
    assert before == 3 * [{State.SUCCEEDED: 1, State.QUEUED: 1}]
    control.request_cancel(session, live, now=NOW + 2 * HOUR)
    after = [_count(sums, session, hours) for hours in (2, 3, 4)]
    assert after == 3 * [{State.SUCCEEDED: 1, State.CANCELLED: 1}]


def test_what_has_settled_is_not_read_again(session: Session) -> None:
    sums = JobSums([60])
    job = create_tuned_job(session)
    _count(sums, session, 1)
    session.get_one(Job, job.id).state = State.CANCELLED
    session.flush()
    assert sums.read(session, now=NOW + HOUR).counts() == [JobCount(State.SUCCEEDED, "qlora", None, 1)]
