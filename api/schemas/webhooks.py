"""Webhook endpoints and their deliveries: OpenAI's objects, with a status and the log beside them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from api.schemas.pages import Named, optional_seconds, unix_seconds
from luthier.tables import WebhookDelivery, WebhookEndpoint


class WebhookEndpointObject(Named):
    """An endpoint. A `disabled` one is sent nothing: as was asked for, or since it answered 410 (`gone`)."""

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: Sequence[str]
    signing_secret_hint: str
    status: Literal["enabled", "disabled"]
    disabled_reason: str | None
    old_secret_active_until: int | None


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """The same with the secret that its messages are signed with, shown this once."""

    signing_secret: str


class WebhookEndpointDeleted(BaseModel):
    """That an endpoint is gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(BaseModel):
    """What a target answered to a sample; `success` says that it answered at all."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True
    milliseconds: int


class WebhookEventTypeList(BaseModel):
    """All events that can be told."""

    object: Literal["list"] = "list"
    data: Sequence[str]


class WebhookDeliveryObject(Named):
    """One attempt to tell an endpoint of an event.

    `status_code` is null where no answer came; `error` then says why. `next_attempt_at` is null where the
    message has arrived, or is given up.
    """

    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    created_at: int
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    data_id: str
    attempt: int
    status_code: int | None
    milliseconds: int
    error: str | None
    next_attempt_at: int | None


def endpoint_object(endpoint: WebhookEndpoint) -> WebhookEndpointObject:
    """What a row shows."""
    until = endpoint.previous_secret_until if endpoint.previous_secret is not None else None
    return WebhookEndpointObject(
        id=endpoint.id,
        created_at=unix_seconds(endpoint.created_at),
        updated_at=unix_seconds(endpoint.updated_at),
        name=endpoint.name,
        url=endpoint.url,
        event_types=endpoint.event_types,
        signing_secret_hint=endpoint.secret_hint,
        status="enabled" if endpoint.disabled_at is None else "disabled",
        disabled_reason=endpoint.disabled_reason,
        old_secret_active_until=optional_seconds(until),
    )


def endpoint_with_secret(endpoint: WebhookEndpoint, secret: str) -> WebhookEndpointWithSecret:
    """The same, for who has just been given the secret."""
    shown = endpoint_object(endpoint).model_dump()
    return WebhookEndpointWithSecret(signing_secret=secret, **shown)


def delivery_object(delivery: WebhookDelivery) -> WebhookDeliveryObject:
    """What a row of the log shows."""
    return WebhookDeliveryObject(
        id=delivery.id,
        created_at=unix_seconds(delivery.created_at),
        webhook_endpoint_id=delivery.endpoint_id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        data_id=delivery.object_id,
        attempt=delivery.attempt,
        status_code=delivery.status_code,
        milliseconds=delivery.milliseconds,
        error=delivery.error,
        next_attempt_at=optional_seconds(delivery.next_attempt_at),
    )
