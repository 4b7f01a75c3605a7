"""What the dispatcher looks for in its rounds: right on both databases, and by index on SQLite."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.service import blocking, endings, sweep, watching
from luthier.service.retries import Ending, Limits
from luthier.status import BlockedOn, Queue
from tests.factories import NOW, claim, create_job, create_prepared_job

LATER = NOW + timedelta(hours=1)
_LIMITS = Limits(5, 5, 3)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _leave_waiting(session: Session, job_id: str, ending: Ending) -> None:
    create_prepared_job(session, job_id)
    run = claim(session)
    assert run is not None
    endings.requeue_run(
        session, run.lease, ending=ending, message="", exit_code=None, limits=_LIMITS, jitter=0.5,
        now=NOW,
    )  # fmt: skip


def test_leases_are_lost_when_their_time_is_over(session: Session) -> None:
    create_prepared_job(session)
    assert claim(session) is not None
    assert watching.count_leased(session) == 1
    assert watching.lost_leases(session, limit=10, now=NOW) == []
    assert watching.lost_leases(session, limit=10, now=LATER) == [("ftjob-1", 1)]


def test_of_leased_jobs_those_that_train_are_told(session: Session) -> None:
    create_prepared_job(session)
    create_job(session, "ftjob-2")
    assert claim(session) is not None
    assert claim(session, Queue.CPU) is not None
    assert [job.id for job in watching.leased_training(session, limit=10)] == ["ftjob-1"]


def test_a_wait_is_over_at_its_time_and_what_is_blocked_is_not_due(session: Session) -> None:
    _leave_waiting(session, "ftjob-1", Ending.DISK_FULL)
    assert not watching.has_due(session, now=LATER)
    _leave_waiting(session, "ftjob-2", Ending.UNAVAILABLE)
    assert not watching.has_due(session, now=NOW)
    assert watching.has_due(session, now=LATER)
    assert watching.has_blocked(session, blocked_on=BlockedOn.DISK)
    assert not watching.has_blocked(session, blocked_on=BlockedOn.QUOTA)
    assert watching.count_waiting(session) == {"disk": 1, watching.RETRY: 1}


def test_a_job_that_waits_for_a_model_is_due_at_its_time(session: Session) -> None:
    create_prepared_job(session)
    run = claim(session)
    assert run is not None
    endings.block_run(session, run.lease, blocked_on=BlockedOn.MODEL, message="503", exit_code=69, now=NOW)
    assert [watching.has_due(session, now=now) for now in (NOW, LATER)] == [False, True]


@pytest.mark.parametrize(
    ("look", "index"),
    [
        (lambda session: watching.has_due(session, now=NOW), "ix_jobs_waiting"),
        (lambda session: watching.has_blocked(session, blocked_on="disk"), "ix_jobs_waiting"),
        (watching.count_waiting, "ix_jobs_waiting"),
        (watching.count_leased, "ix_jobs_leased"),
        (lambda session: watching.lost_leases(session, limit=1, now=NOW), "ix_jobs_leased"),
        (
            lambda session: sweep.sweep(session, limits=_LIMITS, jitter=0, now=NOW, at_most=1),
            "ix_jobs_leased",
        ),
        (lambda session: sweep.wake_waiting(session, now=NOW, limit=1), "ix_jobs_waiting"),
        (
            lambda session: blocking.unblock(session, blocked_on=BlockedOn.DISK, now=NOW, limit=1),
            "ix_jobs_waiting",
        ),
    ],
    ids=["due", "blocked", "waiting", "leased", "lost", "sweep", "wake", "unblock"],
)
def test_no_round_reads_all_jobs(sqlite_url: str, look: Callable[[Session], object], index: str) -> None:
    database = Database(sqlite_url)
    asked: list[tuple[str, Any]] = []
    with database.reading() as session:
        event.listen(database.engine, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
        look(session)
        statement, parameters = asked[-1]
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    database.close()
    assert all(index in step[-1] for step in plan if "jobs" in step[-1]), plan
