"""The tests of runs once more, with agents and supervisors whose commits fail, on both databases.

Faults strike in the threads of an agent alone; who cancels or looks on is spared. What an agent does then is
its own: it reads again, and `drain` is called again as the polling loop does. Afterwards every state, run and
checkpoint is there once.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from luthier.installation import Installation
from luthier.status import LEASED
from luthier.tables import Checkpoint, Job, JobEvent, Run
from tests.faults import by_chance, failing_commits
from tests.worker.test_supervisor import *  # noqa: F403
from worker.agent import Agent

_SEED = int(os.environ.get("LUTHIER_TEST_SEED", "7"))
_ONCE_A_RUN = ("run_started", "job_succeeded", "job_cancelled", "job_failed", "job_requeued")
_MOST_DRAINS = 200


@pytest.fixture
def worker_database_url(sqlite_or_long_url: str) -> str:
    """Each kind of database, in the long form of the tests."""
    return sqlite_or_long_url


@pytest.fixture(autouse=True)
def faults(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One in three commits of an agent fails; at the end, nothing was done twice or is left half done."""
    place = threading.local()
    drain = Agent.drain

    def persistent(agent: Agent) -> None:
        for _ in range(_MOST_DRAINS):
            place.is_agents = True
            try:
                return drain(agent)
            except DBAPIError:
                continue
            finally:
                place.is_agents = False
        raise AssertionError(f"no drain of {_MOST_DRAINS} came to its end")

    def is_armed() -> bool:
        return getattr(place, "is_agents", False) or threading.current_thread().name.startswith("lease ")

    monkeypatch.setattr(Agent, "drain", persistent)
    with failing_commits(installation.database, by_chance(_SEED, 1 / 3, is_armed)):
        yield
    _check(installation)


def _check(installation: Installation) -> None:
    with installation.database.reading() as session:
        jobs = session.scalars(select(Job)).all()
        events = session.execute(select(JobEvent.job_id, JobEvent.epoch, JobEvent.kind)).all()
        steps = session.scalars(select(JobEvent).where(JobEvent.kind == "checkpoint_created")).all()
        runs = Counter(session.scalars(select(Run.job_id)))
        checkpoints = session.scalars(select(Checkpoint)).all()
    assert [job.id for job in jobs if job.state in LEASED] == []
    assert {job.id: job.run_count for job in jobs if job.run_count} == dict(runs)
    counted = Counter(tuple(event) for event in events if event.kind in _ONCE_A_RUN)
    assert {event: count for event, count in counted.items() if count > 1} == {}
    told = Counter((event.job_id, event.epoch, event.data["step"]) for event in steps)
    assert {event: count for event, count in told.items() if count > 1} == {}
    for checkpoint in checkpoints:
        assert installation.storage.manifest(checkpoint.storage_key).files
