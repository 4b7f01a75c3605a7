"""Webhooks on their way from the outbox to real receivers, also such as are away, hung, moved or gone."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import notifications, webhooks
from luthier.settings import Settings
from luthier.tables import Outbox, WebhookDelivery, WebhookEndpoint
from luthier.webhooks import EVENT_TYPES, EventType, WebhookEvent, new_secret, sending
from tests.brokers import BlackHole
from tests.factories import CALLER, create_tuned_job
from tests.receivers import Receiver, make_certificate
from tests.waiting import wait_for
from worker.delivering import WebhookDeliverer
from worker.dispatcher import Dispatcher
from worker.seat import Seat

SECRET = new_secret()
PROJECT = CALLER.project_id


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Receivers on loopback are allowed."""
    return settings.model_copy(update={"webhook_allow_private": "127.0.0.0/8", "poll_seconds": 0.05})


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    """Receivers, closed at the end."""
    made: list[Receiver] = []

    def make(*arguments: Any) -> Receiver:
        made.append(Receiver(*arguments))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., Receiver]) -> Receiver:
    return make_receiver()


@pytest.fixture
def add_endpoint(installation: Installation) -> Callable[..., str]:
    """Adds an endpoint for all events; gives its id."""

    def add(url: str, *event_types: str) -> str:
        endpoint_id = new_id("whep_")
        with installation.database.transaction() as session:
            webhooks.create_endpoint(
                session, CALLER, endpoint_id=endpoint_id, name="ci", url=url,
                event_types=event_types or EVENT_TYPES, secret=SECRET,
                installation_key=installation.installation_key, now=clock(session),
            )  # fmt: skip
        return endpoint_id

    return add


@pytest.fixture
def promise(installation: Installation) -> Callable[..., list[str]]:
    """Promises an endpoint so many messages; gives the ids of their events."""

    def add(endpoint_id: str, count: int = 1) -> list[str]:
        ids = [new_id("evt_") for _ in range(count)]
        with installation.database.transaction() as session:
            now = clock(session)
            session.add_all(
                notifications.message(
                    PROJECT, endpoint_id, WebhookEvent(one, EventType.SUCCEEDED, "ftjob-1", now), now=now
                )
                for one in ids
            )
        return ids

    return add


@pytest.fixture
def delivering(installation: Installation) -> Iterator[None]:
    """A deliverer at work, of the dispatcher that leads."""
    with _delivering(installation):
        yield


@contextmanager
def _delivering(installation: Installation, **changes: Any) -> Iterator[None]:
    settings = installation.settings.model_copy(update=changes)
    installation = replace(installation, settings=settings)
    seat, stopping = Seat(installation, new_id("leader")), threading.Event()
    assert seat.keep(0.0)
    thread = threading.Thread(target=WebhookDeliverer(installation, seat).serve, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        seat.leave()


def _log(installation: Installation, endpoint_id: str | None = None) -> list[WebhookDelivery]:
    """The attempts, oldest first."""
    query = select(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id)
    if endpoint_id is not None:
        query = query.where(WebhookDelivery.endpoint_id == endpoint_id)
    with installation.database.reading() as session:
        return list(session.scalars(query))


def _unsent(installation: Installation) -> int:
    query = select(func.count()).where(Outbox.topic == "webhook", Outbox.sent_at.is_(None))
    with installation.database.reading() as session:
        return session.scalar(query) or 0


def _make_due(installation: Installation) -> None:
    """As if the pause after an attempt were over."""
    with installation.database.transaction() as session:
        query = update(Outbox).where(Outbox.topic == "webhook", Outbox.sent_at.is_(None))
        session.execute(query.values(next_at=clock(session)))


def _endpoint(installation: Installation, endpoint_id: str) -> WebhookEndpoint:
    with installation.database.reading() as session:
        return session.get_one(WebhookEndpoint, endpoint_id)


def test_the_end_of_a_job_reaches_its_receiver_verified(
    installation: Installation, receiver: Receiver, add_endpoint: Callable[..., str], delivering: None
) -> None:
    endpoint_id = add_endpoint(receiver.url, EventType.SUCCEEDED)
    with installation.database.transaction() as session:
        job_id = create_tuned_job(session).id
    wait_for(lambda: _log(installation))
    (message,) = receiver.messages
    told: Any = message.unwrap(SECRET)
    assert (told.type, told.data.id, told.object) == ("fine_tuning.job.succeeded", job_id, "event")
    assert (message.path, message.id) == ("/hook?from=luthier", told.id)
    assert message.headers["content-type"] == "application/json"
    (row,) = _log(installation, endpoint_id)
    assert (row.event_id, row.status_code, row.next_attempt_at) == (told.id, 204, None)
    assert _unsent(installation) == 0


def test_f50_a_target_that_is_down_is_tried_again_under_the_same_id(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
) -> None:
    endpoint_id = add_endpoint(receiver.url)
    receiver.status = 500
    ids = promise(endpoint_id)
    wait_for(lambda: len(_log(installation)) == 1)
    receiver.status = 200
    _make_due(installation)
    wait_for(lambda: len(_log(installation)) == 2)
    first, second = _log(installation)
    assert receiver.ids == ids * 2
    assert receiver.messages[0].body == receiver.messages[1].body
    assert (first.status_code, first.attempt, second.status_code, second.attempt) == (500, 1, 200, 2)
    assert first.next_attempt_at is not None
    pause = first.next_attempt_at - first.created_at
    assert timedelta(seconds=4.5) <= pause <= timedelta(seconds=5.5)


def test_a_target_that_nobody_listens_at_is_tried_again(
    installation: Installation,
    make_receiver: Callable[..., Receiver],
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
) -> None:
    gone = Receiver()
    gone.close()
    promise(add_endpoint(gone.url))
    (row,) = wait_for(lambda: _log(installation))
    assert (row.status_code, row.error) == (None, "the connection was refused, or TLS failed")
    assert _unsent(installation) == 1


def test_f50_a_target_that_hangs_is_given_up_and_holds_up_nobody(
    installation: Installation,
    receiver: Receiver,
    black_hole: BlackHole,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
) -> None:
    """A thousand messages for a target that never answers are older than the one for another."""
    hung = add_endpoint(black_hole.url.replace("redis", "http"))
    promise(hung, 1000)
    (wanted,) = promise(add_endpoint(receiver.url))
    with _delivering(installation, webhook_timeout_seconds=30):
        wait_for(lambda: receiver.ids == [wanted])
        wait_for(lambda: _unsent(installation) == 1000)
        assert 1 <= black_hole.visits <= 4
        assert _log(installation, hung) == []


def test_a_slow_target_has_failed(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
) -> None:
    answers = threading.Event()
    receiver.before_answer = answers.wait
    promise(add_endpoint(receiver.url))
    with _delivering(installation, webhook_timeout_seconds=0.3):
        (row,) = wait_for(lambda: _log(installation))
        answers.set()
    assert (row.status_code, row.error) == (None, "no answer within 0.3 s")
    assert row.milliseconds >= 300


def test_a_target_that_trickles_has_failed_as_well(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
) -> None:
    """The time is for all of the answer's head, however often something of it arrives."""
    receiver.trickles = True
    promise(add_endpoint(receiver.url))
    with _delivering(installation, webhook_timeout_seconds=0.5):
        (row,) = wait_for(lambda: _log(installation))
    assert (row.status_code, row.error) == (None, "no answer within 0.5 s")


def test_what_cannot_be_signed_is_not_sent(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
) -> None:
    """With another key of the installation nothing is signed wrongly, and the log says what to do."""
    promise(add_endpoint(receiver.url))
    with _delivering(replace(installation, installation_key=b"1" * 64)):
        (row,) = wait_for(lambda: _log(installation))
    assert (row.status_code, "rotate it" in (row.error or "")) == (None, True)
    assert receiver.messages == []


def test_f50_a_redirect_is_not_followed(
    installation: Installation,
    receiver: Receiver,
    make_receiver: Callable[..., Receiver],
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
) -> None:
    canary = make_receiver()
    receiver.status = 307
    for count, place in enumerate(("http://169.254.169.254/latest/meta-data", canary.url), 1):
        receiver.headers = {"Location": place}
        promise(add_endpoint(receiver.url))
        rows = wait_for(lambda count=count: len(log := _log(installation)) == count and log)
        assert (rows[-1].status_code, rows[-1].error) == (307, "redirects are not followed")
    assert canary.messages == []


def test_f50_a_name_that_leads_inside_by_now_is_not_called(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
) -> None:
    promise(add_endpoint(receiver.url))
    with _delivering(installation, webhook_allow_private="10.0.0.0/8"):
        (row,) = wait_for(lambda: _log(installation))
    assert row.status_code is None
    assert "not public" in (row.error or "")
    assert receiver.messages == []


def test_a_target_that_is_gone_for_good_is_told_nothing_more(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
) -> None:
    endpoint_id = add_endpoint(receiver.url)
    receiver.status = 410
    promise(endpoint_id)
    wait_for(lambda: _endpoint(installation, endpoint_id).disabled_reason == "gone")
    promise(endpoint_id, 3)
    wait_for(lambda: _unsent(installation) == 0)
    assert len(receiver.messages) == 1


def test_a_target_that_asks_for_patience_gets_it(
    installation: Installation,
    receiver: Receiver,
    make_receiver: Callable[..., Receiver],
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
) -> None:
    busy, other = add_endpoint(receiver.url), make_receiver()
    receiver.status, receiver.headers = 429, {"Retry-After": "3600"}
    promise(busy)
    (row,) = wait_for(lambda: _log(installation))
    assert row.next_attempt_at == row.created_at + timedelta(seconds=3600)
    promise(busy, 5)
    promise(add_endpoint(other.url))
    wait_for(lambda: other.messages)
    assert len(receiver.messages) == 1


@pytest.mark.parametrize("touch", ["redelivery", "another URL"])
def test_what_an_owner_does_ends_the_patience(
    installation: Installation,
    receiver: Receiver,
    make_receiver: Callable[..., Receiver],
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
    touch: str,
) -> None:
    endpoint_id, other = add_endpoint(receiver.url), make_receiver()
    receiver.status, receiver.headers = 429, {"Retry-After": "3600"}
    (first,) = promise(endpoint_id)
    (row,) = wait_for(lambda: _log(installation))
    receiver.status = 204
    with installation.database.transaction() as session:
        endpoint = session.get_one(WebhookEndpoint, endpoint_id)
        if touch == "redelivery":
            webhooks.redeliver(session, endpoint, row, now=clock(session))
        else:
            webhooks.change_endpoint(endpoint, {"url": other.url}, now=clock(session))
    (second,) = promise(endpoint_id)
    wait_for(lambda: second in receiver.ids + other.ids)
    assert (other.ids or receiver.ids[1:]) == ([first, second] if touch == "redelivery" else [second])


def test_an_answer_that_names_no_time_is_the_answer_all_the_same(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
) -> None:
    receiver.headers = {"Retry-After": "Thu, 01 Jan 99999999999 00:00:00 GMT"}
    ids = promise(add_endpoint(receiver.url))
    wait_for(lambda: _log(installation))
    receiver.status = 503
    ids += promise(_log(installation)[0].endpoint_id)
    rows = wait_for(lambda: len(log := _log(installation)) == 2 and log)
    assert [row.status_code for row in rows] == [204, 503]
    assert receiver.ids == ids


def test_a_resolver_that_hangs_keeps_its_place(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its attempt has failed by then, and the next one would take a second thread."""
    answers, asked = threading.Event(), list[str]()
    known = socket.getaddrinfo

    def hang(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "hangs.example":
            asked.append(host)
            answers.wait()
        return known("127.0.0.1", *arguments, **options)

    monkeypatch.setattr("luthier.addresses.socket.getaddrinfo", hang)
    promise(add_endpoint(f"http://hangs.example:{receiver.port}"), 3)
    with _delivering(installation, webhook_timeout_seconds=0.2):
        wait_for(lambda: len(_log(installation)) == 3)
        _make_due(installation)
        promise(add_endpoint(receiver.url))
        wait_for(lambda: receiver.messages)
        assert len(asked) == 3
        answers.set()
        wait_for(lambda: len(receiver.messages) == 4)


def test_during_a_rotation_both_secrets_verify(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    delivering: None,
) -> None:
    """Also where the rotation came twice, since its first answer was lost."""
    endpoint_id, lost, new = add_endpoint(receiver.url), new_secret(), new_secret()
    for secret in (lost, new):
        with installation.database.transaction() as session:
            webhooks.rotate_secret(
                session.get_one(WebhookEndpoint, endpoint_id), secret, keeps_old=True,
                installation_key=installation.installation_key, now=clock(session),
            )  # fmt: skip
    (event_id,) = promise(endpoint_id)
    wait_for(lambda: receiver.messages)
    assert [receiver.messages[0].unwrap(secret).id for secret in (SECRET, lost, new)] == [event_id] * 3


def test_what_a_killed_dispatcher_had_sent_is_sent_again_under_its_id(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    """It is killed between the send and its mark: the receiver, which has all of it, does that."""
    settings = installation.settings
    environment = {
        "LUTHIER_DATA_DIR": str(settings.data), "LUTHIER_DATABASE_URL": str(settings.database_url),
        "LUTHIER_WEBHOOK_ALLOW_PRIVATE": "127.0.0.0/8", "LUTHIER_LEASE_SECONDS": "2",
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "worker.dispatcher"]
    (event_id,) = promise(add_endpoint(receiver.url))
    with (tmp_path / "log").open("wb") as log:
        dispatcher = subprocess.Popen(command, env=environment, stderr=log)
        receiver.before_answer = lambda: os.kill(dispatcher.pid, signal.SIGKILL)
        assert dispatcher.wait() == -signal.SIGKILL
    assert receiver.ids == [event_id]
    assert (_unsent(installation), _log(installation)) == (1, [])
    receiver.before_answer = lambda: None
    stopping = threading.Event()
    successor = threading.Thread(target=Dispatcher(installation, None, "b").serve, args=(stopping,))
    successor.start()
    wait_for(lambda: _log(installation))
    stopping.set()
    successor.join()
    assert receiver.ids == [event_id] * 2
    assert SECRET not in (tmp_path / "log").read_text(encoding="utf-8")


class _CountingSeat(Seat):
    """Counts how often it is asked whether it stands: once a round."""

    question_count = 0

    def stands(self, session: Session, *, now: datetime) -> bool:
        self.question_count += 1
        return super().stands(session, now=now)


def test_who_does_not_lead_sends_nothing(
    installation: Installation,
    receiver: Receiver,
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
) -> None:
    promise(add_endpoint(receiver.url))
    rival, seat = Seat(installation, "rival"), _CountingSeat(installation, "other")
    assert rival.keep(0.0)
    stopping = threading.Event()
    thread = threading.Thread(target=WebhookDeliverer(installation, seat).serve, args=(stopping,))
    thread.start()
    wait_for(lambda: seat.question_count >= 3)
    stopping.set()
    thread.join()
    assert receiver.messages == []
    assert _unsent(installation) == 1


def test_tls_is_checked_for_the_name_and_the_connection_goes_to_the_address_that_was(
    installation: Installation,
    make_receiver: Callable[..., Receiver],
    add_endpoint: Callable[..., str],
    promise: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name is asked for once: a second question, which another answer could follow, would be seen."""
    context, trusted = make_certificate(tmp_path, "hook.example")
    receiver = make_receiver(context)
    asked: list[str] = []

    def answer(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("luthier.addresses.socket.getaddrinfo", answer)
    monkeypatch.setattr(sending, "_tls", lambda: ssl.create_default_context(cafile=str(trusted)))
    promise(add_endpoint(f"https://hook.example:{receiver.port}/"))
    promise(add_endpoint(f"https://another.example:{receiver.port}/"))
    with _delivering(installation):
        rows = wait_for(lambda: rows if len(rows := _log(installation)) == 2 else None)
    assert sorted(asked) == ["another.example", "hook.example"]
    assert [message.headers["host"] for message in receiver.messages] == [f"hook.example:{receiver.port}"]
    (refused,) = [row.error for row in rows if row.status_code is None]
    assert "certificate cannot be trusted: Hostname mismatch" in refused
