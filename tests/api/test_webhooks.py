"""Webhook endpoints over HTTP, through the stock `openai` package and beside it."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import select, text
from starlette.testclient import TestClient

from api import resolving
from luthier import repository
from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import access, deliveries, webhooks
from luthier.service.deliveries import Result
from luthier.service.jobs import Caller
from luthier.settings import Settings
from luthier.tables import Outbox, WebhookDelivery
from luthier.webhooks import EVENT_TYPES, EventType, new_secret
from luthier.webhooks.sending import Answer
from tests.receivers import Receiver
from tests.waiting import wait_for

ENDPOINTS = "/v1/webhook_endpoints"
CREATED = "fine_tuning.job.created"


@pytest.fixture
def app_database_url(request: pytest.FixtureRequest) -> str:
    """SQLite, and Postgres for who asks for it."""
    url: str = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url")
    return url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Receivers on loopback are allowed."""
    return settings.model_copy(update={"webhook_allow_private": "127.0.0.0/8"})


on_postgres = pytest.mark.parametrize("app_database_url", ["postgres"], indirect=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def endpoint(client: TestClient, receiver: Receiver) -> dict[str, Any]:
    """A new endpoint for the creation of jobs, as the answer shows it."""
    body = {"name": "ci", "url": receiver.url, "event_types": [CREATED]}
    answer: dict[str, Any] = client.post(ENDPOINTS, json=body).json()
    return answer


@pytest.fixture
def delivery_id(
    client: TestClient, installation: Installation, endpoint: dict[str, Any], file_id: str
) -> str:
    """Id of an attempt that has failed."""
    client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id})
    with installation.database.transaction() as session:
        now = clock(session)
        due = deliveries.find_due(
            session, installation.installation_key, under_way=(), busy_endpoints=(), busy_projects=(),
            limit=9, now=now,
        )  # fmt: skip
        result = Result(new_id("whdl_"), due.deliveries[0], Answer(3, 500))
        deliveries.record(session, [result], jitter=0.5, now=now)
    return result.id


def test_endpoints_are_made_listed_read_changed_and_deleted(
    openai_client: OpenAI, receiver: Receiver
) -> None:
    hooks = openai_client.webhooks
    made = hooks.create(name="ci", url=receiver.url, event_types=["fine_tuning.job.succeeded"])
    other = hooks.create(name="b", url=receiver.url, event_types=["fine_tuning.job.failed"] * 2)
    assert made.id.startswith("whep_")
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_...{made.signing_secret.rstrip('=')[-4:]}"
    assert [one.id for one in hooks.list(limit=1)] == [other.id, made.id]
    read = hooks.retrieve(made.id)
    assert (read.name, read.url, read.event_types) == ("ci", receiver.url, ["fine_tuning.job.succeeded"])
    assert made.signing_secret not in read.model_dump_json()
    changed = hooks.update(made.id, name="cd", event_types=["fine_tuning.job.cancelled"])
    assert (changed.name, changed.url) == ("cd", receiver.url)
    assert hooks.update(made.id, name="cd").updated_at == changed.updated_at
    assert hooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such webhook endpoint"):
        hooks.retrieve(made.id)


def test_all_events_are_listed(openai_client: OpenAI) -> None:
    assert openai_client.webhooks.event_types.list().data == list(EVENT_TYPES)


def test_a_sample_is_sent_signed_and_its_answer_told(openai_client: OpenAI, receiver: Receiver) -> None:
    hooks = openai_client.webhooks
    made = hooks.create(name="ci", url=receiver.url, event_types=["fine_tuning.job.failed"])
    receiver.status = 418
    answer = hooks.test(made.id, event_type="fine_tuning.job.succeeded")
    assert (answer.status_code, answer.success, answer.webhook_endpoint_id) == (418, True, made.id)
    (message,) = receiver.messages
    assert message.unwrap(made.signing_secret).type == "fine_tuning.job.succeeded"
    rotated = hooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    hooks.test(made.id, event_type="fine_tuning.job.succeeded")
    for secret in (made.signing_secret, rotated.signing_secret):
        assert receiver.messages[-1].unwrap(secret).id == receiver.messages[-1].id
    alone = hooks.rotate_secret(made.id)
    hooks.test(made.id, event_type="fine_tuning.job.succeeded")
    assert receiver.messages[-1].unwrap(alone.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        receiver.messages[-1].unwrap(rotated.signing_secret)


def test_a_sample_that_does_not_arrive_is_told(
    client: TestClient, endpoint: dict[str, Any], receiver: Receiver
) -> None:
    receiver.close()
    answer = client.post(f"{ENDPOINTS}/{endpoint['id']}/test", json={"event_type": CREATED})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "webhook_unreachable")
    assert "refused" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "https://u:p@example.com/"}, "url"),
        ({"url": "http://93.184.215.14/"}, "url"),
        ({"url": "ftp://127.0.0.1/"}, "url"),
        ({"url": "x" * 2049}, "url"),
        ({"url": 7}, "url"),
        ({"name": ""}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["batch.completed"]}, "event_types.0"),
        ({"status": "off"}, "status"),
        ({"secret": "whsec_mine"}, "secret"),
    ],
)
def test_what_is_wrong_is_400_where_it_is_made_and_where_it_is_changed(
    client: TestClient, endpoint: dict[str, Any], change: dict[str, Any], param: str
) -> None:
    good = {key: endpoint[key] for key in ("name", "url", "event_types")}
    answers = [client.post(f"{ENDPOINTS}/{endpoint['id']}", json=change)]
    if param != "status":
        answers.append(client.post(ENDPOINTS, json=good | change))
    assert [(one.status_code, one.json()["error"]["param"]) for one in answers] == [(400, param)] * len(
        answers
    )
    assert len(client.get(ENDPOINTS).json()["data"]) == 1


@pytest.mark.parametrize("body", [{}, {"name": None}])
def test_a_change_of_nothing_is_refused(
    client: TestClient, endpoint: dict[str, Any], body: dict[str, Any]
) -> None:
    answer = client.post(f"{ENDPOINTS}/{endpoint['id']}", json=body)
    assert answer.status_code == 400
    assert "changes nothing" in answer.json()["error"]["message"]


def test_attempts_are_listed_and_sent_again(
    client: TestClient, installation: Installation, endpoint: dict[str, Any], delivery_id: str
) -> None:
    path = f"{ENDPOINTS}/{endpoint['id']}/deliveries"
    (row,) = client.get(path).json()["data"]
    assert (row["id"], row["event_type"], row["attempt"]) == (delivery_id, CREATED, 1)
    assert (row["status_code"], row["milliseconds"], row["error"]) == (500, 3, None)
    assert row["next_attempt_at"] - row["created_at"] in (4, 5, 6)
    assert client.get(path, params={"after": delivery_id}).json()["data"] == []
    assert client.get(path, params={"after": "whdl_none"}).status_code == 400
    again = client.post(f"{path}/{delivery_id}/redeliver")
    assert (again.status_code, again.json()["event_id"]) == (200, row["event_id"])
    with installation.database.reading() as session:
        messages = session.scalars(select(Outbox).where(Outbox.topic == "webhook")).all()
    assert [message.payload["event_id"] for message in messages] == [row["event_id"]] * 2


def test_a_disabled_endpoint_sends_nothing_again_until_it_is_enabled(
    client: TestClient, endpoint: dict[str, Any], delivery_id: str
) -> None:
    path = f"{ENDPOINTS}/{endpoint['id']}"
    assert client.post(path, json={"status": "disabled"}).json()["disabled_reason"] == "asked"
    refused = client.post(f"{path}/deliveries/{delivery_id}/redeliver")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "webhook_disabled")
    assert client.post(path, json={"status": "enabled"}).json()["status"] == "enabled"
    assert client.post(f"{path}/deliveries/{delivery_id}/redeliver").status_code == 200


def test_an_endpoint_goes_with_its_log_and_what_waits(
    client: TestClient, installation: Installation, endpoint: dict[str, Any], delivery_id: str
) -> None:
    assert delivery_id
    assert client.delete(f"{ENDPOINTS}/{endpoint['id']}").json() == {
        "id": endpoint["id"],
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    }
    with installation.database.reading() as session:
        assert session.scalars(select(WebhookDelivery)).all() == []
        assert session.scalars(select(Outbox).where(Outbox.topic == "webhook")).all() == []


def _is_waited_for(installation: Installation, *answers: Future[Any]) -> bool:
    """Whether each of some calls waits for a lock, or has ended."""
    with installation.database.reading() as session:
        waiting = session.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()
    return bool(waiting + sum(answer.done() for answer in answers) == len(answers))


@on_postgres
def test_an_endpoint_that_goes_while_it_is_changed_is_not_there(
    client: TestClient, installation: Installation, endpoint: dict[str, Any], delivery_id: str
) -> None:
    path = f"{ENDPOINTS}/{endpoint['id']}"
    with ThreadPoolExecutor(4) as pool:
        with installation.database.transaction() as session:
            gone = repository.get_webhook_endpoint(session, access.DEFAULT_PROJECT, endpoint["id"])
            webhooks.delete_endpoint(session, gone)
            session.flush()
            answers = [
                pool.submit(client.post, path, json={"name": "other"}),
                pool.submit(client.post, f"{path}/rotate_secret"),
                pool.submit(client.post, f"{path}/deliveries/{delivery_id}/redeliver"),
                pool.submit(client.delete, path),
            ]
            wait_for(lambda: _is_waited_for(installation, *answers))
        assert [answer.result().status_code for answer in answers] == [404] * 4


@on_postgres
def test_of_endpoints_that_are_made_at_once_none_is_one_too_many(
    client: TestClient,
    installation: Installation,
    endpoint: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "MAX_ENDPOINTS", 2)
    body = {key: endpoint[key] for key in ("name", "url", "event_types")}
    with ThreadPoolExecutor(1) as pool:
        with installation.database.transaction() as session:
            caller = Caller(access.DEFAULT_ORGANIZATION, access.DEFAULT_PROJECT, "key-test")
            webhooks.create_endpoint(
                session, caller, endpoint_id="whep_other", name="b", url=endpoint["url"],
                event_types=[CREATED], secret=new_secret(),
                installation_key=installation.installation_key, now=clock(session),
            )  # fmt: skip
            answer = pool.submit(client.post, ENDPOINTS, json=body)
            wait_for(lambda: _is_waited_for(installation, answer))
        assert answer.result().json()["error"]["code"] == "quota_exceeded"


def test_a_resolver_that_hangs_holds_up_few(
    client: TestClient,
    installation: Installation,
    endpoint: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()
    known = socket.getaddrinfo

    def hang(*arguments: Any, **options: Any) -> Any:
        answers.wait()
        return known(*arguments, **options)

    monkeypatch.setattr("luthier.addresses.socket.getaddrinfo", hang)
    monkeypatch.setattr(resolving, "_PLACES", threading.BoundedSemaphore(2))
    app: Any = client.app
    short = installation.settings.model_copy(update={"webhook_timeout_seconds": 0.1})
    app.state.installation = replace(installation, settings=short)
    body = {key: endpoint[key] for key in ("name", "url", "event_types")}
    path = f"{ENDPOINTS}/{endpoint['id']}"
    test = client.post(f"{path}/test", json={"event_type": CREATED}).json()["error"]
    assert (test["code"], "no answer within 0.1 s" in test["message"]) == ("webhook_unreachable", True)
    late, busy = (client.post(ENDPOINTS, json=body) for _ in range(2))
    assert (late.status_code, "in time" in late.json()["error"]["message"]) == (400, True)
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "not_done_yet")
    answers.set()
    wait_for(lambda: client.post(path, json={"url": endpoint["url"]}).status_code == 200)


def test_the_endpoints_of_another_project_are_not_there(
    client: TestClient, stranger: TestClient, endpoint: dict[str, Any], delivery_id: str
) -> None:
    path = f"{ENDPOINTS}/{endpoint['id']}"
    answers = [
        stranger.get(path),
        stranger.post(path, json={"name": "mine"}),
        stranger.delete(path),
        stranger.post(f"{path}/rotate_secret"),
        stranger.post(f"{path}/test", json={"event_type": CREATED}),
        stranger.get(f"{path}/deliveries"),
        stranger.post(f"{path}/deliveries/{delivery_id}/redeliver"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert stranger.get(ENDPOINTS).json()["data"] == []
    assert stranger.get(ENDPOINTS, params={"after": endpoint["id"]}).status_code == 400
    mine = stranger.post(
        ENDPOINTS, json={"name": "s", "url": endpoint["url"], "event_types": [EventType.CREATED]}
    )
    crossed = f"{ENDPOINTS}/{mine.json()['id']}/deliveries/{delivery_id}/redeliver"
    assert stranger.post(crossed).status_code == 404
    assert client.get(path).json()["name"] == "ci"


def test_a_secret_is_shown_once_and_never_logged(
    client: TestClient, endpoint: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path = f"{ENDPOINTS}/{endpoint['id']}"
    rotated = client.post(f"{path}/rotate_secret", json={}).json()
    client.post(f"{path}/test", json={"event_type": CREATED})
    shown = f"{client.get(path).text}{client.get(ENDPOINTS).text}{capfd.readouterr()}"
    for secret in (endpoint["signing_secret"], rotated["signing_secret"]):
        assert secret.removeprefix("whsec_") not in shown
