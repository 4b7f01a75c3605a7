"""Webhook endpoints: made, changed, given another secret, deleted.

Whether a URL may be called is checked by the caller, before its transaction: that asks a resolver.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from luthier.errors import LuthierError
from luthier.sealing import seal
from luthier.service import quotas
from luthier.service.jobs import Caller
from luthier.service.notifications import WEBHOOK, message
from luthier.tables import Outbox, WebhookDelivery, WebhookEndpoint
from luthier.webhooks import WebhookEvent, hint_of

MAX_ENDPOINTS = 20
_OVERLAP = timedelta(hours=24)
_PREVIOUS_SECRETS = 2
_BETWEEN = "\n"


def purpose_of(endpoint_id: str) -> str:
    """What the secrets of an endpoint are sealed for."""
    return f"webhook/{endpoint_id}"


def create_endpoint(
    session: Session,
    caller: Caller,
    *,
    endpoint_id: str,
    name: str,
    url: str,
    event_types: Collection[str],
    secret: str,
    installation_key: bytes,
    now: datetime,
) -> WebhookEndpoint:
    """Add an endpoint.

    Raises:
        LuthierError: `quota_exceeded`, where the project has `MAX_ENDPOINTS`.
    """
    quotas.lock_project(session, caller.project_id)
    query = select(func.count()).where(WebhookEndpoint.project_id == caller.project_id)
    if (session.scalar(query) or 0) >= MAX_ENDPOINTS:
        text = f"The project has {MAX_ENDPOINTS} webhook endpoints, which is all: delete one first"
        raise LuthierError(text, "quota_exceeded")
    endpoint = WebhookEndpoint(
        id=endpoint_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        name=name,
        url=url,
        event_types=sorted(set(event_types)),
        secret=seal(secret, installation_key, purpose=purpose_of(endpoint_id)),
        secret_hint=hint_of(secret),
        created_at=now,
        updated_at=now,
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def change_endpoint(endpoint: WebhookEndpoint, changes: Mapping[str, Any], *, now: datetime) -> None:
    """Give an endpoint another `name`, `url`, `event_types` or `status`; what stays the same is no change."""
    values = {name: changes[name] for name in ("name", "url") if name in changes}
    if "event_types" in changes:
        values["event_types"] = sorted(set(changes["event_types"]))
    if "status" in changes and (changes["status"] == "disabled") != (endpoint.disabled_at is not None):
        is_disabled = changes["status"] == "disabled"
        values |= {
            "disabled_at": now if is_disabled else None,
            "disabled_reason": "asked" if is_disabled else None,
        }
    changed = {name: value for name, value in values.items() if getattr(endpoint, name) != value}
    for name, value in changed.items():
        setattr(endpoint, name, value)
    if changed:
        endpoint.updated_at = now


def rotate_secret(
    endpoint: WebhookEndpoint, secret: str, *, keeps_old: bool, installation_key: bytes, now: datetime
) -> None:
    """Give an endpoint a new secret; for 24 hours the one before signs, too, where that is asked for.

    What was promised as much before goes on for as long: a client sends this again when an answer is lost.
    """
    kept = [endpoint.secret, *valid_previous_secrets(endpoint, now)][:_PREVIOUS_SECRETS] if keeps_old else []
    endpoint.previous_secret = _BETWEEN.join(kept) or None
    endpoint.previous_secret_until = now + _OVERLAP if keeps_old else None
    endpoint.secret = seal(secret, installation_key, purpose=purpose_of(endpoint.id))
    endpoint.secret_hint, endpoint.updated_at = hint_of(secret), now


def valid_previous_secrets(endpoint: WebhookEndpoint, now: datetime) -> list[str]:
    """The secrets before, sealed, that still sign, the newest first."""
    until = endpoint.previous_secret_until
    is_valid = endpoint.previous_secret is not None and until is not None and now < until
    return (endpoint.previous_secret or "").split(_BETWEEN) if is_valid else []


def delete_endpoint(session: Session, endpoint: WebhookEndpoint) -> None:
    """Delete a locked endpoint, its log, and what was to be sent to it."""
    waiting = delete(Outbox).where(
        Outbox.topic == WEBHOOK, Outbox.key == endpoint.id, Outbox.sent_at.is_(None)
    )
    session.execute(waiting.execution_options(synchronize_session=False))
    session.delete(endpoint)


def redeliver(
    session: Session, endpoint: WebhookEndpoint, delivery: WebhookDelivery, *, now: datetime
) -> None:
    """Send the message of a delivery again, from the first attempt on and under the same id.

    What the endpoint's target has asked for, to be left alone, ends with that.

    Raises:
        LuthierError: `webhook_disabled`.
    """
    if endpoint.disabled_at is not None:
        text = f"Webhook endpoint {endpoint.id} is disabled: set its status to 'enabled' first"
        raise LuthierError(text, "webhook_disabled")
    event = WebhookEvent(delivery.event_id, delivery.event_type, delivery.object_id, delivery.event_at)
    session.add(message(endpoint.project_id, endpoint.id, event, now=now))
    delivery.next_attempt_at = endpoint.updated_at = now
