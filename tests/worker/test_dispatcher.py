"""The dispatcher's rounds, with time passed in."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from luthier.database import clock
from luthier.installation import Installation
from luthier.status import Queue, State
from luthier.tables import Job
from tests.factories import claim, create_job
from worker.dispatcher import Dispatcher


@pytest.fixture
def lost_job(installation: Installation) -> str:
    """A job whose worker was lost long ago."""
    with installation.database.transaction() as session:
        create_job(session, model="tiny")
        taken = claim(session, Queue.CPU)
        assert taken is not None
        session.execute(
            update(Job)
            .values(lease_expires_at=clock(session) - timedelta(hours=1))
            .where(Job.lease_owner.is_not(None))
        )
    return taken.job.id


def _state(installation: Installation, job_id: str) -> str:
    with installation.database.reading() as session:
        return session.get_one(Job, job_id).state


def test_a_new_leader_takes_nothing_back_for_one_lease(installation: Installation, lost_job: str) -> None:
    dispatcher = Dispatcher(installation, None, "a")
    seconds = installation.settings.lease_seconds
    dispatcher.tick(1000.0)
    assert _state(installation, lost_job) == State.STARTING
    dispatcher.tick(1000.0 + seconds + installation.settings.sweep_seconds)
    assert _state(installation, lost_job) == State.QUEUED


def test_only_the_leader_works(installation: Installation, lost_job: str) -> None:
    Dispatcher(installation, None, "a").tick(1000.0)
    second = Dispatcher(installation, None, "b")
    second.tick(1000.0)
    second.tick(9999.0)
    assert _state(installation, lost_job) == State.STARTING
