"""What endpoints are told, what follows an attempt, and what is kept of it, on both databases."""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from luthier import events
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.service import access, control, deliveries, endings, recording, runs, webhooks
from luthier.service.deliveries import ATTEMPTS, Delivery, Result, pause_seconds
from luthier.tables import Outbox, WebhookDelivery, WebhookEndpoint
from luthier.webhooks import EVENT_TYPES, EventType, WebhookEvent, hint_of, new_secret, sign
from luthier.webhooks.sending import Answer
from tests.factories import (
    CALLER,
    NOW,
    caller_of,
    claim,
    create_job,
    create_prepared_job,
    create_project,
    create_tuned_job,
)

KEY = b"0" * 64
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
EVENT = WebhookEvent("evt_1", EventType.SUCCEEDED, "ftjob-1", NOW)


def add_endpoint(session: Session, endpoint_id: str = "whep_1", **fields: Any) -> WebhookEndpoint:
    defaults: dict[str, Any] = {
        "name": "ci", "url": "https://example.com/", "event_types": EVENT_TYPES, "secret": new_secret(),
        "installation_key": KEY, "now": NOW,
    }  # fmt: skip
    access.ensure_project(session, now=NOW)
    caller = fields.pop("caller", CALLER)
    return webhooks.create_endpoint(session, caller, endpoint_id=endpoint_id, **defaults | fields)


def told(session: Session) -> list[tuple[str, str]]:
    """Endpoint and type of each message, in the order in which they were promised."""
    query = select(Outbox).where(Outbox.topic == "webhook").order_by(Outbox.id)
    return [(message.key, message.payload["type"].rpartition(".")[2]) for message in session.scalars(query)]


def due(session: Session, *, now: Any = NOW, **fields: Any) -> Sequence[Delivery]:
    nothing: dict[str, Any] = {"under_way": (), "busy_endpoints": (), "busy_projects": (), "limit": 99}
    return deliveries.find_due(session, KEY, now=now, **nothing | fields).deliveries


def record(session: Session, delivery: Delivery, *, number: int = 1, **answer: Any) -> None:
    result = Result(f"whdl_{number}", delivery, Answer(12, **answer))
    deliveries.record(session, [result], jitter=0.5, now=NOW)


def test_every_step_of_a_job_is_told_once(database: Database) -> None:
    with database.transaction() as session:
        create_job(session, "ftjob-before")
        add_endpoint(session)
        job = create_prepared_job(session)
        control.request_pause(session, job, now=NOW)
        control.resume(session, job, now=NOW)
        run = claim(session)
        assert run is not None
        batch = [events.RunStarted(resumed_from_step=0)]
        recording.record_events(session, run.lease, batch, offset=1, now=NOW)
        recording.record_events(session, run.lease, batch, offset=1, now=NOW)
        for _ in range(2):
            runs.record_checkpoint(
                session, run.lease, step=1, storage_key="k", manifest_sha256="0" * 64, size_bytes=1,
                metrics={}, now=NOW,
            )  # fmt: skip
        control.request_cancel(session, job, now=NOW)
        endings.stop_run(session, run.lease, exit_code=85, now=NOW)
        names = [name for _, name in told(session)]
        assert names == ["created", "paused", "running", "checkpoint_created", "cancelled"]
        ids = session.scalars(select(Outbox).where(Outbox.topic == "webhook")).all()
        assert len({message.payload["event_id"] for message in ids}) == len(names)


def test_each_endpoint_of_the_project_is_told_of_what_it_asked_for(database: Database) -> None:
    with database.transaction() as session:
        create_project(session, "proj-b")
        add_endpoint(session, "whep_a", event_types=[EventType.SUCCEEDED, EventType.FAILED])
        add_endpoint(session, "whep_b", event_types=[EventType.CREATED])
        add_endpoint(session, "whep_other", caller=caller_of("proj-b"))
        webhooks.change_endpoint(add_endpoint(session, "whep_off"), {"status": "disabled"}, now=NOW)
        create_tuned_job(session)
        assert told(session) == [("whep_b", "created"), ("whep_a", "succeeded")]


def test_without_an_endpoint_a_move_costs_one_look(database: Database) -> None:
    statements: list[str] = []
    with database.transaction() as session:
        job = create_prepared_job(session)
        run = claim(session)
        assert run is not None
        logged = events.StepLogged(step=1, total_steps=9, epoch=0, train_loss=1)
        recording.record_events(session, run.lease, [events.RunStarted()], offset=1, now=NOW)
        event.listen(database.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
        recording.record_events(session, run.lease, [logged], offset=2, now=NOW)
        assert not [text for text in statements if "webhook" in text]
        control.request_cancel(session, job, now=NOW)
        endings.stop_run(session, run.lease, exit_code=85, now=NOW)
        assert len([text for text in statements if "webhook" in text]) == 1


def test_a_message_is_tried_ten_times_within_a_day_and_then_given_up() -> None:
    failed = Answer(1, 500)
    pauses = [pause_seconds(attempt, failed, 0.5) for attempt in range(1, ATTEMPTS + 1)]
    since_first = [sum(pause or 0 for pause in pauses[:count]) for count in range(1, ATTEMPTS)]
    assert since_first == pytest.approx([5, 300, 1800, *(3600 * hours for hours in (2, 5, 10, 14, 20, 24))])
    assert pauses[-1] is None
    assert pause_seconds(2, failed, 0) == pytest.approx(295 * 0.9)
    assert pause_seconds(2, failed, 0.999999) == pytest.approx(295 * 1.1, rel=1e-3)


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (Answer(1, 200), None),
        (Answer(1, 204), None),
        (Answer(1, 410), None),
        (Answer(1, 302), 5),
        (Answer(1, 400), 5),
        (Answer(1, error="no answer within 15 s"), 5),
        (Answer(1, 503, retry_after_seconds=120), 120),
        (Answer(1, 429, retry_after_seconds=1), 5),
        (Answer(1, 502, retry_after_seconds=1e9), 86_400),
    ],
)
def test_an_answer_decides_when_the_next_attempt_is(answer: Answer, pause: float | None) -> None:
    assert pause_seconds(1, answer, 0.5) == pause


def test_an_attempt_is_logged_and_its_message_waits(database: Database) -> None:
    with database.transaction() as session:
        add_endpoint(session)
        create_job(session)
        (first,) = due(session)
        record(session, first, status_code=500)
        record(session, first, status_code=500)  # a commit in doubt is told of twice
    with database.reading() as session:
        (row,) = session.scalars(select(WebhookDelivery))
        assert (row.attempt, row.status_code, row.milliseconds) == (1, 500, 12)
        assert (row.event_type, row.object_id) == ("fine_tuning.job.created", "ftjob-1")
        assert row.next_attempt_at == NOW + 5 * SECOND
        assert due(session, now=NOW + 4 * SECOND) == []
        (second,) = due(session, now=NOW + 6 * SECOND)
        assert (second.attempt, second.event) == (2, first.event)


@pytest.mark.parametrize(
    ("status_code", "reason"), [(200, None), (410, "gone")], ids=["arrived", "not wanted any more"]
)
def test_what_has_arrived_or_is_not_wanted_is_done_with(
    database: Database, status_code: int, reason: str | None
) -> None:
    with database.transaction() as session:
        endpoint = add_endpoint(session)
        create_job(session)
        record(session, due(session)[0], status_code=status_code)
        assert due(session, now=NOW + DAY) == []
        assert endpoint.disabled_reason == reason
        assert session.scalars(select(WebhookDelivery)).one().next_attempt_at is None


def test_an_endpoint_that_goes_while_it_is_told_leaves_nothing(database: Database) -> None:
    with database.transaction() as session:
        endpoint = add_endpoint(session)
        create_job(session)
        (delivery,) = due(session)
        record(session, delivery, status_code=500)
        webhooks.delete_endpoint(session, endpoint)
        session.flush()
        record(session, delivery, number=2, status_code=200)
        assert session.scalars(select(WebhookDelivery)).all() == []
        assert due(session, now=NOW + DAY) == []


def test_what_a_disabled_endpoint_was_to_be_told_is_not_wanted(database: Database) -> None:
    with database.transaction() as session:
        endpoint = add_endpoint(session)
        create_job(session)
        webhooks.change_endpoint(endpoint, {"status": "disabled"}, now=NOW)
        session.flush()
        found = deliveries.find_due(
            session, KEY, under_way=(), busy_endpoints=(), busy_projects=(), limit=9, now=NOW
        )
        assert (len(found.deliveries), len(found.unwanted)) == (0, 1)


def test_who_is_busy_stands_in_nobodys_way(database: Database) -> None:
    with database.transaction() as session:
        create_project(session, "proj-b")
        add_endpoint(session, "whep_a", event_types=[EventType.CREATED])
        add_endpoint(session, "whep_b", event_types=[EventType.CREATED], caller=caller_of("proj-b"))
        for number in range(20):
            create_job(session, f"ftjob-{number}")
        create_job(session, "ftjob-b", project_id="proj-b")
        session.flush()
        assert {one.endpoint_id for one in due(session, limit=5)} == {"whep_a"}
        (other,) = due(session, limit=5, busy_endpoints=["whep_a"])
        assert other == due(session, limit=5, busy_projects=["proj-default"])[0]
        assert other.endpoint_id == "whep_b"
        assert due(session, busy_endpoints=["whep_a"], under_way=[other.message_id]) == []


def test_a_message_is_sent_again_by_hand_under_its_id(database: Database) -> None:
    with database.transaction() as session:
        endpoint = add_endpoint(session)
        create_job(session)
        (first,) = due(session)
        record(session, first, status_code=200)
        row = session.scalars(select(WebhookDelivery)).one()
        webhooks.redeliver(session, endpoint, row, now=NOW)
        session.flush()
        (again,) = due(session)
        assert (again.event, again.attempt) == (first.event, 1)
        assert again.message_id != first.message_id
        webhooks.change_endpoint(endpoint, {"status": "disabled"}, now=NOW)
        with pytest.raises(LuthierError, match="is disabled"):
            webhooks.redeliver(session, endpoint, row, now=NOW)


def test_the_log_is_forgotten_after_a_while(database: Database) -> None:
    with database.transaction() as session:
        add_endpoint(session)
        create_job(session)
        record(session, due(session)[0], status_code=200)
        keep = timedelta(days=30)
        assert deliveries.forget_old(session, older_than=keep, limit=9, now=NOW + keep) == 0
        assert deliveries.forget_old(session, older_than=keep, limit=9, now=NOW + keep + SECOND) == 1


def test_the_old_secret_signs_for_a_day_where_that_is_wished(database: Database) -> None:
    old, new = new_secret(), new_secret()
    with database.transaction() as session:
        endpoint = add_endpoint(session, secret=old)
        webhooks.rotate_secret(endpoint, new, keeps_old=True, installation_key=KEY, now=NOW)
        create_job(session)
        assert due(session)[0].secrets == [new, old]
        assert due(session, now=NOW + DAY)[0].secrets == [new]
        webhooks.rotate_secret(endpoint, old, keeps_old=False, installation_key=KEY, now=NOW)
        session.flush()
        assert due(session)[0].secrets == [old]


def test_secrets_stand_in_no_row_and_no_representation(database: Database) -> None:
    secret = new_secret()
    with database.transaction() as session:
        endpoint = add_endpoint(session, secret=secret)
        create_job(session)
        (delivery,) = due(session)
        rows = [*session.scalars(select(WebhookEndpoint)), *session.scalars(select(Outbox))]
        stored = " ".join(str(vars(row)) for row in rows)
        assert delivery.secrets == [secret]
        assert secret.removeprefix("whsec_") not in f"{stored}{delivery!r}"
        assert endpoint.secret_hint == hint_of(secret)


def test_of_another_installation_a_secret_cannot_be_opened(database: Database) -> None:
    with database.transaction() as session:
        add_endpoint(session, installation_key=b"1" * 64)
        create_job(session)
        assert due(session)[0].secrets == ()


def test_a_project_has_so_many_endpoints_and_no_more(database: Database) -> None:
    with database.transaction() as session:
        create_job(session)
        for number in range(webhooks.MAX_ENDPOINTS):
            add_endpoint(session, f"whep_{number}")
        with pytest.raises(LuthierError, match="delete one first"):
            add_endpoint(session, "whep_more")


def test_a_signature_is_that_of_the_standard() -> None:
    """The formula of the standard's text: base64 of HMAC-SHA256 over `id.timestamp.body`."""
    secrets = [new_secret(), new_secret()]
    body = EVENT.body()
    wanted = [
        base64.b64encode(
            hmac.new(base64.b64decode(secret[6:]), b"evt_1.1700000000." + body, hashlib.sha256).digest()
        ).decode()
        for secret in secrets
    ]
    assert sign(secrets, "evt_1", 1_700_000_000, body) == f"v1,{wanted[0]} v1,{wanted[1]}"
    assert len(base64.b64decode(secrets[0].removeprefix("whsec_"))) == 32


def test_a_body_tells_the_type_and_the_id_alone() -> None:
    assert json.loads(EVENT.body()) == {
        "id": "evt_1",
        "object": "event",
        "created_at": int(NOW.timestamp()),
        "type": "fine_tuning.job.succeeded",
        "data": {"id": "ftjob-1"},
    }
    assert WebhookEvent.of_payload(json.loads(json.dumps(EVENT.payload()))) == EVENT
