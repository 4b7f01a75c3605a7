"""Sums over all jobs that read what has ended only once."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.job_sums import JobCount, JobSums
from luthier.service import control, endings, errands
from luthier.service.errands import ErrandFile, PreviewErrand
from luthier.spec import DatasetRequest
from luthier.status import Queue, State
from luthier.tables import Job
from tests.factories import NOW, claim, create_file, create_job, create_tuned_job

HOUR = timedelta(hours=1)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _count(sums: JobSums, session: Session, hours: float) -> dict[State, int]:
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


def test_a_reading_that_comes_late_counts_nothing_twice(session: Session) -> None:
    sums = JobSums([60])
    create_tuned_job(session)
    assert [_count(sums, session, hours) for hours in (2, 0, 2)] == 3 * [{State.SUCCEEDED: 1}]


def test_a_job_that_ended_as_the_last_ones_settled_is_counted_once(session: Session) -> None:
    sums = JobSums([60])
    create_tuned_job(session)
    minutes = [_count(sums, session, minute / 60) for minute in (9, 10, 11)]
    assert minutes == 3 * [{State.SUCCEEDED: 1}]


def test_a_look_at_a_file_is_no_validation_of_it(session: Session) -> None:
    file = create_file(session)
    look = PreviewErrand(
        file=ErrandFile(file_id=file.id), model="tiny", dataset=DatasetRequest(), max_seq_length=8,
        offset=0, count=1,
    )  # fmt: skip
    errands.ask(session, look, key="key", subject=file, work_id="work-look", now=NOW)
    work = claim(session, Queue.CPU)
    assert work is not None
    endings.start_finalizing(session, work.lease, now=NOW)
    endings.succeed_work(session, work.lease, result={"rows": []}, message="", now=NOW)
    assert JobSums([60]).read(session, now=NOW).validations() == {}


def test_what_has_settled_is_not_read_again(session: Session) -> None:
    sums = JobSums([60])
    job = create_tuned_job(session)
    _count(sums, session, 1)
    session.get_one(Job, job.id).state = State.CANCELLED
    session.flush()
    assert sums.read(session, now=NOW + HOUR).counts() == [JobCount(State.SUCCEEDED, "qlora", None, 1)]
