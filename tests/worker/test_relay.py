"""Doorbells on their way from the outbox to a real broker, also one that is away, hung, full or emptied."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from luthier.database import clock
from luthier.installation import Installation
from luthier.queue import make_sender
from luthier.service import doorbells, leadership, workers
from luthier.status import Queue, State
from luthier.tables import Job, Leader, Outbox
from tests.brokers import BlackHole, Broker
from tests.factories import create_job, create_prepared_job
from tests.waiting import wait_for
from worker.dispatcher import Dispatcher
from worker.relay import Relay
from worker.ringing import DoorbellSender
from worker.seat import Seat


@pytest.fixture
def seat(installation: Installation) -> Seat:
    """The seat of the dispatcher that leads."""
    seat = Seat(installation, "leader")
    assert seat.keep(0.0)
    return seat


@pytest.fixture
def relay_to(installation: Installation, seat: Seat) -> Callable[[str | None], Relay]:
    """A relay of doorbells to a broker, or to none."""

    def make(url: str | None) -> Relay:
        sender = DoorbellSender(installation.settings, make_sender(url) if url else None)
        return Relay(installation, sender, seat)

    return make


def _submit(installation: Installation, *job_ids: str) -> None:
    with installation.database.transaction() as session:
        for job_id in job_ids:
            create_job(session, job_id, model="tiny")


def _add_workers(installation: Installation, count: int) -> None:
    with installation.database.transaction() as session:
        for number in range(count):
            workers.record_worker(
                session, f"host-{number}/cpu", instance_id="i", host="host", queue=Queue.CPU, device="cpu",
                version="1", resources={}, state="active", now=clock(session),
            )  # fmt: skip


def _unsent(installation: Installation) -> list[Outbox]:
    with installation.database.reading() as session:
        return list(session.scalars(select(Outbox).where(Outbox.sent_at.is_(None))))


def _leads_until(installation: Installation) -> datetime:
    with installation.database.reading() as session:
        return session.get_one(Leader, leadership.LEADER).expires_at or datetime.min.replace(tzinfo=UTC)


def _make_due(installation: Installation) -> None:
    """As if the pause after a failure were over."""
    with installation.database.transaction() as session:
        for message in session.scalars(select(Outbox)):
            message.next_at = message.created_at


@contextmanager
def _refusing(broker: Broker) -> Iterator[None]:
    broker.kill()
    try:
        yield
    finally:
        broker.restart()


_FAULTS: dict[str, Callable[[Broker], AbstractContextManager[None]]] = {
    "killed": _refusing,
    "hung": Broker.hung,
    "full": Broker.full,
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_doorbell_outlives_a_broker_that_fails(
    installation: Installation, broker: Broker, relay_to: Callable[[str | None], Relay], fault: str
) -> None:
    relay = relay_to(broker.url)
    _submit(installation, "ftjob-before")
    assert relay.relay()  # so that the sender has a connection which then breaks
    broker.flush()
    _submit(installation, "ftjob-meanwhile")
    with _FAULTS[fault](broker):
        assert not relay.relay()
    assert [(m.tries, m.payload["job_id"]) for m in _unsent(installation)] == [(1, "work-ftjob-meanwhile")]
    assert relay.relay()  # not due yet
    _make_due(installation)
    assert relay.relay()
    assert _unsent(installation) == []
    assert broker.count_waiting("cpu") == 1


def test_a_broker_that_accepts_and_never_answers_is_given_up(
    installation: Installation, black_hole: BlackHole, relay_to: Callable[[str | None], Relay]
) -> None:
    _submit(installation, "ftjob-1", "ftjob-2")
    # pytest's own limit would end the test: the first message that hangs ends the round.
    assert not relay_to(black_hole.url).relay()
    assert len(_unsent(installation)) == 2
    assert 1 <= black_hole.visits <= 2


def test_a_wrong_password_is_a_broker_that_is_away(
    installation: Installation, broker: Broker, relay_to: Callable[[str | None], Relay]
) -> None:
    _submit(installation, "ftjob-1")
    assert not relay_to(broker.url.replace("//", "//luthier:wrong@")).relay()
    assert len(_unsent(installation)) == 1


def test_a_hung_broker_holds_up_neither_leadership_nor_sweep(
    installation: Installation, black_hole: BlackHole
) -> None:
    stopping = threading.Event()
    short = installation.settings.model_copy(update={"lease_seconds": 1.5})
    dispatcher = Dispatcher(replace(installation, settings=short), make_sender(black_hole.url), "a")
    serving = threading.Thread(target=dispatcher.serve, args=(stopping,))
    _submit(installation, "ftjob-1")
    serving.start()
    try:
        wait_for(lambda: black_hole.visits > 0)
        # The relay waits for an answer from now on; leadership is renewed all the same.
        before = _leads_until(installation)
        wait_for(lambda: _leads_until(installation) > before)
        assert len(_unsent(installation)) == 1
    finally:
        stopping.set()
        serving.join()


def test_who_does_not_lead_sends_nothing(
    installation: Installation, broker: Broker, relay_to: Callable[[str | None], Relay], seat: Seat
) -> None:
    _submit(installation, "ftjob-1")
    seat.leave()
    assert relay_to(broker.url).relay()
    assert len(_unsent(installation)) == 1
    assert broker.count_waiting("cpu") == 0


def test_a_leader_whose_time_is_over_sends_nothing(
    installation: Installation, broker: Broker, relay_to: Callable[[str | None], Relay]
) -> None:
    _submit(installation, "ftjob-1")
    with installation.database.transaction() as session:
        hour_ago = clock(session) - timedelta(hours=1)
        session.get_one(Leader, leadership.LEADER).expires_at = hour_ago
    assert relay_to(broker.url).relay()
    assert broker.count_waiting("cpu") == 0


def test_every_worker_hears_a_doorbell_and_the_broker_keeps_no_more(
    installation: Installation, broker: Broker, relay_to: Callable[[str | None], Relay]
) -> None:
    _add_workers(installation, 3)
    relay = relay_to(broker.url)
    for batch in range(2):
        _submit(installation, *(f"ftjob-{batch}-{number}" for number in range(10)))
        assert relay.relay()
    assert _unsent(installation) == []
    assert broker.count_waiting("cpu") == 3


def test_without_a_broker_doorbells_are_done_with(
    installation: Installation, relay_to: Callable[[str | None], Relay]
) -> None:
    _submit(installation, "ftjob-1")
    assert relay_to(None).relay()
    assert _unsent(installation) == []


def test_an_emptied_broker_gets_its_doorbells_again(
    installation: Installation, broker: Broker, relay_to: Callable[[str | None], Relay]
) -> None:
    """`FLUSHALL` with 100 jobs in the queue: one doorbell for each worker is enough."""
    _add_workers(installation, 4)
    relay = relay_to(broker.url)
    _submit(installation, *(f"ftjob-{number}" for number in range(100)))
    assert relay.relay()
    broker.flush()
    assert _ring_forgotten(installation, listeners={"cpu": 4}) == 4
    assert relay.relay()
    assert broker.count_waiting("cpu") == 4


def test_forgotten_work_adds_no_doorbell_to_one_that_waits(installation: Installation) -> None:
    _submit(installation, *(f"ftjob-{number}" for number in range(20)))
    assert _ring_forgotten(installation, listeners={"cpu": 8}) == 0


def test_work_that_cannot_be_claimed_is_not_rung_for(
    installation: Installation, relay_to: Callable[[str | None], Relay]
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, "ftjob-later").not_before = clock(session) + timedelta(hours=1)
        create_prepared_job(session, "ftjob-runs").state = State.PAUSED
        create_job(session, "ftjob-unprepared", model="tiny")
    relay_to(None).relay()
    assert _ring_forgotten(installation, listeners={}) == 1
    assert [message.key for message in _unsent(installation)] == [Queue.CPU]


def _ring_forgotten(installation: Installation, *, listeners: dict[str, int]) -> int:
    """As if all jobs had been in the queue for an hour."""
    with installation.database.transaction() as session:
        now = clock(session)
        for job in session.scalars(select(Job)):
            job.queued_at = now - timedelta(hours=1)
        session.flush()
        return doorbells.ring_forgotten(session, older_than_seconds=60, listeners=listeners, now=now)
