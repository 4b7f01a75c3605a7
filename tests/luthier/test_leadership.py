"""Who leads, and that whoever does not lead any more writes nothing."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier.database import Database, clock
from luthier.service import leadership
from luthier.service.leadership import Leadership, LeadershipLostError
from tests.factories import NOW

LEASE_SECONDS = 60.0
LATER = NOW + timedelta(seconds=LEASE_SECONDS + 1)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _lead(session: Session, holder: str, now: object = NOW) -> Leadership | None:
    return leadership.lead(session, holder, lease_seconds=LEASE_SECONDS, now=now)  # type: ignore[arg-type]


def test_one_leads_until_its_lease_ran_out(session: Session) -> None:
    assert _lead(session, "a") == Leadership("a", 1)
    assert _lead(session, "b") is None
    assert _lead(session, "a") == Leadership("a", 1)
    assert _lead(session, "b", LATER) == Leadership("b", 2)
    assert _lead(session, "a", LATER) is None


def test_who_comes_too_late_to_renew_leads_anew(session: Session) -> None:
    """So that it is careful: the database may have been away meanwhile, or the clock jumped."""
    assert _lead(session, "a") == Leadership("a", 1)
    assert _lead(session, "a", LATER) == Leadership("a", 2)


def test_who_resigns_is_followed_at_once(session: Session) -> None:
    first = _lead(session, "a")
    assert first is not None
    leadership.resign(session, first)
    session.flush()
    assert leadership.may_lead(session, "b", now=NOW)
    assert _lead(session, "b") == Leadership("b", 2)


def test_a_leader_that_was_followed_does_not_resign_for_the_other(session: Session) -> None:
    first, second = _lead(session, "a"), _lead(session, "b", LATER)
    assert first is not None
    leadership.resign(session, first)
    session.flush()
    assert _lead(session, "b", LATER) == second


@pytest.mark.parametrize(
    "stale", [Leadership("a", 1), Leadership("b", 1), Leadership("a", 2)], ids=["former", "epoch", "holder"]
)
def test_what_does_not_stand_is_refused(session: Session, stale: Leadership) -> None:
    _lead(session, "a")
    second = _lead(session, "b", LATER)
    assert second is not None
    leadership.confirm(session, second, lease_seconds=LEASE_SECONDS, now=LATER)
    with pytest.raises(LeadershipLostError):
        leadership.confirm(session, stale, lease_seconds=LEASE_SECONDS, now=LATER)


def test_a_leader_whose_time_is_over_is_refused_even_if_nobody_followed(session: Session) -> None:
    leader = _lead(session, "a")
    assert leader is not None
    assert not leadership.stands(session, leader, now=LATER)
    with pytest.raises(LeadershipLostError):
        leadership.confirm(session, leader, lease_seconds=LEASE_SECONDS, now=LATER)


def test_nobody_takes_over_while_a_transaction_of_the_leader_lasts(database: Database) -> None:
    with database.transaction() as session:
        leader = _lead(session, "a")
    assert leader is not None
    taken_over = threading.Event()

    def take_over() -> None:
        with database.transaction() as session:
            assert _lead(session, "b", LATER) == Leadership("b", 2)
        taken_over.set()

    other = threading.Thread(target=take_over)
    with database.transaction() as session:
        leadership.confirm(session, leader, lease_seconds=LEASE_SECONDS, now=NOW)
        other.start()
        # Waiting is the point here: the other one must not come through.
        assert not taken_over.wait(0.3)
    other.join(10)
    assert taken_over.is_set()


def test_postgres_ends_the_transaction_of_a_leader_that_stopped_in_it(postgres_url: str) -> None:
    """Else its lock on the leader row would keep everybody from following it for as long as it is stopped."""
    database = Database(postgres_url)
    with database.transaction() as session:
        leader = leadership.lead(session, "a", lease_seconds=LEASE_SECONDS, now=clock(session))
    assert leader is not None
    with database.engine.connect() as connection:
        stopped = Session(connection)
        leadership.confirm(stopped, leader, lease_seconds=0.1, now=clock(stopped))
        with database.transaction() as other:
            assert _lead(other, "b", clock(other) + timedelta(seconds=LEASE_SECONDS)) == Leadership("b", 2)
        with pytest.raises(DBAPIError):
            stopped.commit()
        connection.invalidate()
    database.close()
