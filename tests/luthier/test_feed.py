"""What streams read, on SQLite and on Postgres."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from luthier import events, repository
from luthier.database import Database
from luthier.service import control, deletion, feed, recording
from tests.factories import CALLER, NOW, claim, create_job, create_prepared_job, create_project


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def test_heads_tell_of_jobs_that_are_there(session: Session) -> None:
    create_job(session, "ftjob-1")
    over = create_job(session, "ftjob-2")
    control.request_cancel(session, over, now=NOW)
    deletion.delete_job(session, over, now=NOW)
    heads = feed.find_heads(session, ["ftjob-1", "ftjob-2", "work-ftjob-1", *map(str, range(1200))])
    assert [(head.id, head.state, head.next_number) for head in heads] == [("ftjob-1", "queued", 4)]


def test_heads_of_a_project_are_those_that_live_and_those_that_ended_lately(session: Session) -> None:
    create_project(session, "proj-other")
    create_job(session, "ftjob-theirs", project_id="proj-other")
    create_job(session, "ftjob-lives")
    for job_id, seconds in (("ftjob-long-ago", 0), ("ftjob-lately", 100)):
        control.request_cancel(session, create_job(session, job_id), now=NOW + timedelta(seconds=seconds))
    heads = feed.list_heads(session, CALLER.project_id, ended_since=NOW + timedelta(seconds=50))
    assert {head.id for head in heads} == {"ftjob-lives", "ftjob-lately"}


def test_events_behind_a_number_come_oldest_first_with_the_metrics_among_them(session: Session) -> None:
    create_prepared_job(session)
    taken = claim(session)
    assert taken is not None
    step = events.StepLogged(step=1, total_steps=2, epoch=0.5)
    recording.record_events(session, taken.lease, [events.RunStarted(), step], offset=1, now=NOW)
    whole = [row.number for row in repository.list_events_after(session, "ftjob-1", after=0, limit=100)]
    assert whole == list(range(1, len(whole) + 1))
    part = repository.list_events_after(session, "ftjob-1", after=2, limit=2)
    assert [row.number for row in part] == [3, 4]
