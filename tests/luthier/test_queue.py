"""Where jobs stand and how long they will wait, as projects take turns."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.errors import LuthierError
from luthier.service import idempotency, queue, workers
from luthier.service.idempotency import Mark
from luthier.status import Queue
from luthier.tables import Job
from tests.factories import CALLER, NOW, claim, create_prepared_job, create_project

PROJECT = CALLER.project_id


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _submit(session: Session, letter: str, count: int, **fields: Any) -> list[Job]:
    jobs = [
        create_prepared_job(
            session, f"ftjob-{letter}{n}", now=NOW + timedelta(seconds=10 * ord(letter) + n), **fields
        )
        for n in range(1, count + 1)
    ]
    for job in jobs:
        job.estimated_seconds = 100.0
    session.flush()
    return jobs


def _add_workers(session: Session, count: int) -> None:
    for number in range(count):
        workers.record_worker(
            session, f"host/gpu{number}", instance_id="i", host="host", queue=Queue.TRAIN, device="GPU",
            version="0", resources={}, state="active", now=NOW,
        )  # fmt: skip
    session.flush()


def _places(session: Session, jobs: list[Job]) -> list[tuple[int, float | None]]:
    places = queue.places(session, jobs, now=NOW)
    return [(places[job.id].position, places[job.id].wait_seconds) for job in jobs]


def test_without_workers_a_position_has_no_wait(session: Session) -> None:
    assert _places(session, _submit(session, "a", 2)) == [(1, None), (2, None)]


def test_the_wait_counts_what_runs_and_what_stands_before(session: Session) -> None:
    jobs = _submit(session, "a", 5)
    _add_workers(session, 2)
    taken = claim(session)
    assert taken is not None
    taken.job.progress = {"seconds_remaining": 30.0}
    session.flush()
    assert _places(session, jobs[1:]) == [(1, 0.0), (2, 30.0), (3, 100.0), (4, 130.0)]


@pytest.mark.parametrize("claimed", range(6))
def test_positions_are_the_order_in_which_projects_are_served(session: Session, claimed: int) -> None:
    create_project(session, "proj-b")
    mine = _submit(session, "a", 4)
    others = _submit(session, "b", 2, project_id="proj-b")
    order = []
    told: dict[str, int] = {}
    for number in range(6):
        if number == claimed:
            for jobs in (mine, others):
                told |= {id_: place.position for id_, place in queue.places(session, jobs, now=NOW).items()}
        taken = claim(session, owner=f"host/gpu{number}#1", now=NOW + timedelta(hours=number + 1))
        assert taken is not None
        order.append(taken.job.id)
    assert told == {job_id: position for position, job_id in enumerate(order[claimed:], start=1)}


def test_a_new_job_would_stand_behind_its_own_and_the_turns_of_others(session: Session) -> None:
    create_project(session, "proj-b")
    assert queue.next_position(session, PROJECT, now=NOW) == 1
    _submit(session, "a", 2)
    _submit(session, "b", 9, project_id="proj-b")
    assert queue.next_position(session, PROJECT, now=NOW) in (5, 6)


def test_a_key_is_free_again_after_its_time(session: Session) -> None:
    create_project(session, "proj-b")
    mark = Mark("k", "0" * 64)
    assert idempotency.take(session, PROJECT, mark, object_id="ftjob-1", now=NOW) is None
    assert idempotency.take(session, PROJECT, mark, object_id="ftjob-2", now=NOW) == "ftjob-1"
    assert idempotency.take(session, "proj-b", mark, object_id="ftjob-3", now=NOW) is None
    late = NOW + timedelta(days=1)
    other = Mark("k", "1" * 64)
    with pytest.raises(LuthierError):
        idempotency.find(session, PROJECT, other, now=late - timedelta(seconds=1))
    assert idempotency.take(session, PROJECT, other, object_id="ftjob-4", now=late) is None
    idempotency.forget_old(session, limit=10, now=late)
    assert idempotency.find(session, "proj-b", mark, now=NOW) is None
    assert idempotency.find(session, PROJECT, other, now=late) == "ftjob-4"
