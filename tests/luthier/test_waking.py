"""Who waits for messages hears of one with its commit, and is no worse off where nothing can be heard."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from luthier.database import Database
from luthier.waking import Waker
from tests.factories import create_job

_PATIENCE_SECONDS = 30.0


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url)
    yield database
    database.close()


@pytest.fixture
def waker(postgres: Database) -> Iterator[Waker]:
    """One that listens already."""
    waker = postgres.waker()
    assert not waker.wait(_PATIENCE_SECONDS)
    assert waker.is_listening
    yield waker
    waker.close()


def test_a_message_is_heard_of_once_it_can_be_seen(postgres: Database, waker: Waker) -> None:
    with postgres.transaction() as session:
        create_job(session, "ftjob-1", model="tiny")
        session.flush()
        assert not waker.wait(0)
    assert waker.wait(_PATIENCE_SECONDS)
    assert not waker.wait(0)


def test_what_is_taken_back_wakes_nobody(postgres: Database, waker: Waker) -> None:
    with pytest.raises(ZeroDivisionError):
        _promise_and_break_off(postgres)
    assert not waker.wait(0)


def _promise_and_break_off(database: Database) -> None:
    with database.transaction() as session:
        create_job(session, "ftjob-1", model="tiny")
        session.flush()
        raise ZeroDivisionError


def test_work_without_a_message_wakes_nobody(postgres: Database, waker: Waker) -> None:
    with postgres.transaction() as session:
        session.execute(text("UPDATE jobs SET priority = 1"))
    assert not waker.wait(0)


def test_a_lost_connection_is_told_and_made_anew(postgres: Database, waker: Waker) -> None:
    with postgres.transaction() as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )
        )
    assert not waker.wait(_PATIENCE_SECONDS)
    assert not waker.is_listening
    assert not waker.wait(_PATIENCE_SECONDS)
    assert waker.is_listening
    with postgres.transaction() as session:
        create_job(session, "ftjob-1", model="tiny")
    assert waker.wait(_PATIENCE_SECONDS)


def test_nothing_is_heard_on_sqlite(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    waker = database.waker()
    assert not waker.wait(_PATIENCE_SECONDS)
    assert not waker.is_listening
    database.close()
