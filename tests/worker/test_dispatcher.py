"""The dispatcher's rounds, with time passed in, and a real broker where doorbells matter."""

from datetime import timedelta

import pytest
from sqlalchemy import select, update

from luthier.database import clock
from luthier.installation import Installation
from luthier.queue import make_celery
from luthier.status import Queue, State
from luthier.tables import Job, Outbox
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


def test_without_a_broker_doorbells_are_done_with(installation: Installation, lost_job: str) -> None:
    Dispatcher(installation, None, "a").tick(1000.0)
    with installation.database.reading() as session:
        assert session.scalars(select(Outbox).where(Outbox.sent_at.is_(None))).all() == []


def test_doorbells_reach_the_broker_on_their_queue(
    installation: Installation, lost_job: str, redis_url: str
) -> None:
    celery = make_celery(redis_url)
    Dispatcher(installation, celery, "a").tick(1000.0)
    with celery.connection_for_read() as connection:
        message = connection.default_channel.basic_get("cpu", no_ack=True)
    assert message is not None
    assert lost_job.encode() in message.body


def test_a_broker_that_is_away_loses_no_doorbell(installation: Installation, lost_job: str) -> None:
    Dispatcher(installation, make_celery("redis://127.0.0.1:1/0"), "a").tick(1000.0)
    with installation.database.reading() as session:
        unsent = session.scalars(select(Outbox).where(Outbox.sent_at.is_(None))).all()
    assert [(message.tries, message.payload["job_id"]) for message in unsent] == [(1, lost_job)]
