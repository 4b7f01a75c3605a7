"""Who gets which job: what fits the device, whose turn it is, and what a project may have at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.service import claims
from luthier.service.claims import Offer
from luthier.service.quotas import QuotaLimits
from luthier.status import Queue
from luthier.tables import Job
from tests.factories import NOW, claim, create_job, create_prepared_job, create_project

GIB = 1 << 30


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _claimed(session: Session, count: int, **fields: object) -> list[str | None]:
    """Ids of the next jobs, claimed a second apart by agents of their own."""
    taken = [
        claim(session, owner=f"host/gpu{n}#1", now=NOW + timedelta(minutes=1, seconds=n), **fields)
        for n in range(count)
    ]
    return [each.job.id if each else None for each in taken]


def _submit(session: Session, *job_ids: str, **fields: object) -> list[Job]:
    return [
        create_prepared_job(session, job_id, now=NOW + timedelta(seconds=n), **fields)
        for n, job_id in enumerate(job_ids)
    ]


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        (Offer(), "ftjob-large"),
        (Offer(free_memory_bytes=80 * GIB), "ftjob-large"),
        (Offer(free_memory_bytes=40 * GIB - 1), "ftjob-unknown"),
    ],
)
def test_only_work_that_fits_the_free_memory_is_taken(session: Session, offer: Offer, expected: str) -> None:
    large, _ = _submit(session, "ftjob-large", "ftjob-unknown")
    large.memory_bytes = 40 * GIB
    session.flush()
    assert _claimed(session, 1, offer=offer) == [expected]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"fast", "eu", "x.y"}, "ftjob-two"),
        ({"fast"}, "ftjob-one"),
        ({"eu", "fas"}, "ftjob-none"),
        (set(), "ftjob-none"),
    ],
)
def test_a_worker_takes_only_jobs_all_of_whose_labels_it_carries(
    session: Session, labels: set[str], expected: str
) -> None:
    for job_id, asked in (("none", []), ("one", ["fast"]), ("two", ["eu", "fast"])):
        _submit(session, f"ftjob-{job_id}", resources={"labels": asked}, priority=len(asked))
    assert _claimed(session, 1, offer=Offer(labels=frozenset(labels))) == [expected]


def test_a_job_for_several_devices_waits_for_who_has_them(session: Session) -> None:
    _submit(session, "ftjob-1", resources={"gpus": 2})
    assert _claimed(session, 1) == [None]
    assert _claimed(session, 1, offer=Offer(gpu_count=2)) == ["ftjob-1"]


def test_the_project_with_the_fewest_jobs_at_work_goes_first(session: Session) -> None:
    create_project(session, "proj-b")
    _submit(session, "ftjob-a1", "ftjob-a2", "ftjob-a3")
    _submit(session, "ftjob-b1", "ftjob-b2", project_id="proj-b", priority=-5)
    assert _claimed(session, 5) == ["ftjob-a1", "ftjob-b1", "ftjob-a2", "ftjob-b2", "ftjob-a3"]


def test_on_one_device_projects_take_turns(session: Session) -> None:
    create_project(session, "proj-b")
    _submit(session, "ftjob-a1", "ftjob-a2", "ftjob-a3")
    _submit(session, "ftjob-b1", project_id="proj-b")
    order = []
    for n in range(4):
        taken = claim(session, now=NOW + timedelta(minutes=n + 1))
        assert taken is not None
        order.append(taken.job.id)
        taken.job.state, taken.job.lease_owner, taken.job.lease_expires_at = "paused", None, None
        session.flush()
    assert order == ["ftjob-a1", "ftjob-b1", "ftjob-a2", "ftjob-a3"]


@pytest.mark.parametrize("own", [None, {"running_jobs": 1}])
def test_a_project_runs_no_more_jobs_than_its_quota(session: Session, own: dict[str, int] | None) -> None:
    create_project(session, "proj-b", quotas=own)
    _submit(session, "ftjob-b1", "ftjob-b2", project_id="proj-b")
    limits = QuotaLimits(running_jobs=1 if own is None else 7)
    assert _claimed(session, 2, limits=limits) == ["ftjob-b1", None]
    assert not claims.has_work(session, Queue.TRAIN, "host/gpu9", now=NOW, limits=limits)


def test_the_preparation_of_an_urgent_job_goes_first_but_never_before_an_errand(session: Session) -> None:
    create_job(session, "ftjob-1")
    create_job(session, "ftjob-2", priority=100, now=NOW + timedelta(seconds=1))
    taken = claim(session, Queue.CPU, now=NOW + timedelta(seconds=1))
    assert taken is not None
    assert (taken.job.subject_job_id, taken.job.priority) == ("ftjob-2", 9)


def test_two_agents_at_once_get_two_jobs(postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.transaction() as session:
        _submit(session, "ftjob-1", "ftjob-2")
    with database.transaction() as first, database.transaction() as second:
        one, other = claim(first), claim(second, owner="host/gpu1#1")
        assert one is not None
        assert other is not None
        assert [one.job.id, other.job.id] == ["ftjob-1", "ftjob-2"]
    database.close()


def test_a_quota_holds_between_agents_that_claim_at_once(postgres_url: str) -> None:
    database = Database(postgres_url)
    limits = QuotaLimits(running_jobs=3)
    with database.transaction() as session:
        _submit(session, *(f"ftjob-{n}" for n in range(8)))
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: _claim_alone(database, f"host/gpu{n}#1", limits), range(8)))
    database.close()
    assert sum(taken) == 3


def _claim_alone(database: Database, owner: str, limits: QuotaLimits) -> bool:
    with database.transaction() as session:
        return claim(session, owner=owner, limits=limits) is not None
