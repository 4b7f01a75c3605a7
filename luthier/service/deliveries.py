"""Messages on their way to webhook endpoints: which are due, what each attempt came to, and what follows.

The outbox's row is the promise, `webhook_deliveries` the log: one row an attempt. A message is tried ten
times within 24 hours, then given up; its endpoint stays as it is, but one that answers 410 is disabled.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from luthier.sealing import SealError, unseal
from luthier.service import outbox
from luthier.service.notifications import WEBHOOK
from luthier.service.webhooks import purpose_of, valid_previous_secrets
from luthier.tables import Outbox, WebhookDelivery, WebhookEndpoint
from luthier.webhooks import WebhookEvent
from luthier.webhooks.sending import Answer

# From each attempt to the next: 5 s, 5 and 30 min, 2, 5, 10, 14, 20 and 24 h after the first one.
_PAUSES_SECONDS = (5, 295, 1500, 5400, 10_800, 18_000, 14_400, 21_600, 14_400)
ATTEMPTS = len(_PAUSES_SECONDS) + 1
_JITTER = 0.1
_LONGEST_WAIT_SECONDS = 24 * 3600
_GONE = 410


@dataclass(frozen=True)
class Delivery:
    """A message that may be sent now.

    Attributes:
        secrets: that sign it, the newest first; empty where they cannot be opened.
        attempt: the number of this one, from 1.
    """

    message_id: int
    endpoint_id: str
    project_id: str
    url: str
    event: WebhookEvent
    attempt: int
    endpoint_updated_at: datetime
    secrets: Sequence[str] = field(repr=False)


@dataclass(frozen=True)
class Result:
    """What an attempt came to; `id` is that of its row in the log."""

    id: str
    delivery: Delivery
    answer: Answer


@dataclass(frozen=True)
class Due:
    """What may be sent now, ids of messages that nobody wants any more, and whether there may be others."""

    deliveries: Sequence[Delivery]
    unwanted: Sequence[int]
    has_more: bool


def find_due(
    session: Session,
    installation_key: bytes,
    *,
    under_way: Collection[int],
    busy_endpoints: Collection[str],
    busy_projects: Collection[str],
    limit: int,
    now: datetime,
) -> Due:
    """Messages that are due, those that have waited longest first.

    Args:
        under_way: ids of messages that are being sent.
        busy_endpoints, busy_projects: that get nothing more for now; however much is due to them, it stands
            in nobody's way.
    """
    query = (
        select(Outbox, WebhookEndpoint)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == Outbox.key)
        .where(Outbox.sent_at.is_(None), Outbox.topic == WEBHOOK, Outbox.next_at <= now)
        .where(Outbox.id.not_in(under_way), Outbox.key.not_in(busy_endpoints))
        .where(Outbox.project_id.not_in(busy_projects))
        .order_by(Outbox.next_at, Outbox.id)
        .limit(limit)
    )
    deliveries, unwanted = [], []
    secrets: dict[str, Sequence[str]] = {}
    rows = session.execute(query).all()
    for message, endpoint in rows:
        if endpoint is None or endpoint.disabled_at is not None:
            unwanted.append(message.id)
            continue
        if endpoint.id not in secrets:
            secrets[endpoint.id] = _opened(endpoint, installation_key, now)
        deliveries.append(_delivery(message, endpoint, secrets[endpoint.id]))
    return Due(deliveries, unwanted, has_more=len(rows) == limit)


def find_updated(session: Session, updated_at: Mapping[str, datetime]) -> list[str]:
    """Those of some endpoints that their owner has touched since: changed, or sent something again."""
    query = select(WebhookEndpoint.id, WebhookEndpoint.updated_at).where(WebhookEndpoint.id.in_(updated_at))
    return [one for one, at in session.execute(query) if at != updated_at[one]]


def record(session: Session, results: Iterable[Result], *, jitter: float, now: datetime) -> None:
    """Write what attempts came to: into the log, and whether and when the message is tried again.

    Telling of one twice changes nothing.

    Args:
        jitter: in [0, 1); spreads what failed together.
    """
    fresh = _not_recorded(session, results)
    endpoints = _lock(session, {result.delivery.endpoint_id for result in fresh})
    arrived: list[int] = []
    for result in fresh:
        delivery, answer = result.delivery, result.answer
        pause = pause_seconds(delivery.attempt, answer, jitter)
        next_at = None if pause is None else now + timedelta(seconds=pause)
        endpoint = endpoints.get(delivery.endpoint_id)
        if endpoint is not None and answer.status_code == _GONE:
            endpoint.disabled_at, endpoint.disabled_reason = now, "gone"
        if endpoint is None or next_at is None:
            arrived.append(delivery.message_id)
        else:
            outbox.try_at(session, delivery.message_id, next_at)
        # An endpoint that was deleted meanwhile has no log.
        if endpoint is not None:
            session.add(_row(result, next_at, now))
    outbox.record_sent(session, arrived, now=now)


def pause_seconds(attempt: int, answer: Answer, jitter: float) -> float | None:
    """How long to wait before the next attempt; None where there is none, for good or for bad."""
    if answer.has_arrived or answer.status_code == _GONE or attempt >= ATTEMPTS:
        return None
    planned = _PAUSES_SECONDS[attempt - 1] * (1 - _JITTER + 2 * _JITTER * jitter)
    return max(planned, asked_pause_seconds(answer))


def asked_pause_seconds(answer: Answer) -> float:
    """How long a target that has too much to do asks to be left alone; 0 where it does not."""
    return min(answer.retry_after_seconds or 0.0, _LONGEST_WAIT_SECONDS)


def forget_old(session: Session, *, older_than: timedelta, limit: int, now: datetime) -> int:
    """Delete old rows of the log; returns how many, at most `limit`."""
    old = select(WebhookDelivery.id).where(WebhookDelivery.created_at < now - older_than)
    ids = session.scalars(old.order_by(WebhookDelivery.created_at).limit(limit)).all()
    if ids:
        query = delete(WebhookDelivery).where(WebhookDelivery.id.in_(ids))
        session.execute(query.execution_options(synchronize_session=False))
    return len(ids)


def signing_secrets(endpoint: WebhookEndpoint, installation_key: bytes, *, now: datetime) -> Sequence[str]:
    """The secrets that sign now, the newest first.

    Raises:
        SealError: they were sealed under another installation's key.
    """
    sealed = [endpoint.secret, *valid_previous_secrets(endpoint, now)]
    return [unseal(text, installation_key, purpose=purpose_of(endpoint.id)) for text in sealed]


def _opened(endpoint: WebhookEndpoint, installation_key: bytes, now: datetime) -> Sequence[str]:
    try:
        return signing_secrets(endpoint, installation_key, now=now)
    except SealError:
        return ()


def _delivery(message: Outbox, endpoint: WebhookEndpoint, secrets: Sequence[str]) -> Delivery:
    event = WebhookEvent.of_payload(message.payload)
    return Delivery(
        message_id=message.id,
        endpoint_id=endpoint.id,
        project_id=message.project_id,
        url=endpoint.url,
        event=event,
        attempt=message.tries + 1,
        endpoint_updated_at=endpoint.updated_at,
        secrets=secrets,
    )


def _not_recorded(session: Session, results: Iterable[Result]) -> list[Result]:
    """Those whose row is not there yet: the commit that wrote it may have been in doubt."""
    by_id = {result.id: result for result in results}
    known = session.scalars(select(WebhookDelivery.id).where(WebhookDelivery.id.in_(by_id)))
    return [by_id[one] for one in by_id.keys() - set(known)]


def _lock(session: Session, endpoint_ids: Collection[str]) -> dict[str, WebhookEndpoint]:
    """The endpoints that are still there, which then stay until the commit."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id.in_(endpoint_ids)).order_by(WebhookEndpoint.id)
    return {endpoint.id: endpoint for endpoint in session.scalars(query.with_for_update())}


def _row(result: Result, next_at: datetime | None, now: datetime) -> WebhookDelivery:
    delivery, answer = result.delivery, result.answer
    return WebhookDelivery(
        id=result.id,
        project_id=delivery.project_id,
        endpoint_id=delivery.endpoint_id,
        event_id=delivery.event.id,
        event_type=delivery.event.type,
        object_id=delivery.event.object_id,
        event_at=delivery.event.at,
        attempt=delivery.attempt,
        status_code=answer.status_code,
        milliseconds=answer.milliseconds,
        error=answer.error,
        created_at=now,
        next_attempt_at=next_at,
    )
