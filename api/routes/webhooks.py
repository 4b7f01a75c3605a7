"""`/v1/webhook_endpoints`: who is told of jobs; OpenAI's calls, and the log of deliveries.

A URL is checked before the transaction, since names are asked for; and anew with each message.
"""

import asyncio
import threading
from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy.orm import Session

from api.dependencies import After, CallerOf, InstallationOf, Limit, body_of, optional_body_of
from api.openapi import json_body
from api.resolving import check_url, start_asking
from api.schemas.pages import ListPage, page_of
from api.schemas.webhook_requests import RotateSecretRequest, WebhookPatch, WebhookRequest, WebhookTestRequest
from api.schemas.webhooks import (
    WebhookDeliveryObject,
    WebhookEndpointDeleted,
    WebhookEndpointObject,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    delivery_object,
    endpoint_object,
    endpoint_with_secret,
)
from luthier import repository
from luthier.database import clock
from luthier.errors import LuthierError
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.sealing import SealError
from luthier.service import deliveries, webhooks
from luthier.service.jobs import Caller
from luthier.tables import WebhookEndpoint
from luthier.webhooks import EVENT_TYPES, WebhookEvent, hint_of, new_secret
from luthier.webhooks.sending import send

MAX_LIMIT = 100
_DEFAULT_LIMIT = 20
# A target that is slow holds a thread of this process while it is tried.
_TESTS_AT_ONCE = threading.BoundedSemaphore(4)
_SAMPLE_ID = "ftjob-sample"

router = APIRouter(prefix="/v1", tags=["webhooks"])


@router.get("/webhook_event_types", operation_id="list_webhook_event_types")
def list_webhook_event_types(_caller: CallerOf) -> WebhookEventTypeList:
    """List the events that endpoints can be told of."""
    return WebhookEventTypeList(data=EVENT_TYPES)


@router.post(
    "/webhook_endpoints",
    operation_id="create_webhook_endpoint",
    openapi_extra=json_body(WebhookRequest),
)
def create_webhook_endpoint(
    body: Annotated[WebhookRequest, Depends(body_of(WebhookRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> WebhookEndpointWithSecret:
    """Add an endpoint; the secret that its messages are signed with is shown in this answer alone.

    The URL is https and leads to public addresses, unless the operator allows others.
    """
    check_url(installation, body.url)
    endpoint_id, secret = new_id("whep_"), new_secret()

    def create(session: Session) -> WebhookEndpoint:
        return webhooks.create_endpoint(
            session,
            caller,
            endpoint_id=endpoint_id,
            name=body.name,
            url=body.url,
            event_types=body.event_types,
            secret=secret,
            installation_key=installation.installation_key,
            now=clock(session),
        )

    endpoint = installation.database.run(create, recall=lambda s: s.get(WebhookEndpoint, endpoint_id))
    return endpoint_with_secret(endpoint, secret)


@router.get("/webhook_endpoints", operation_id="list_webhook_endpoints")
def list_webhook_endpoints(
    installation: InstallationOf, caller: CallerOf, after: After = None, limit: Limit = _DEFAULT_LIMIT
) -> ListPage[WebhookEndpointObject]:
    """List endpoints, newest first."""
    with installation.database.reading() as session:
        page = repository.list_webhook_endpoints(
            session, caller.project_id, after=after, limit=min(limit, MAX_LIMIT)
        )
    return page_of([endpoint_object(endpoint) for endpoint in page.data], has_more=page.has_more)


@router.get("/webhook_endpoints/{endpoint_id}", operation_id="get_webhook_endpoint")
def get_webhook_endpoint(
    endpoint_id: str, installation: InstallationOf, caller: CallerOf
) -> WebhookEndpointObject:
    """One endpoint."""
    with installation.database.reading() as session:
        return endpoint_object(repository.get_webhook_endpoint(session, caller.project_id, endpoint_id))


@router.post(
    "/webhook_endpoints/{endpoint_id}",
    operation_id="update_webhook_endpoint",
    openapi_extra=json_body(WebhookPatch),
)
def update_webhook_endpoint(
    endpoint_id: str,
    body: Annotated[WebhookPatch, Depends(body_of(WebhookPatch))],
    installation: InstallationOf,
    caller: CallerOf,
) -> WebhookEndpointObject:
    """Change an endpoint's name, URL or events, or switch it on or off; what is left out stays."""
    if body.url is not None:
        check_url(installation, body.url)

    def change(session: Session) -> WebhookEndpointObject:
        endpoint = _locked(session, caller, endpoint_id)
        webhooks.change_endpoint(endpoint, body.model_dump(exclude_none=True), now=clock(session))
        return endpoint_object(endpoint)

    return installation.database.run(change)


@router.delete("/webhook_endpoints/{endpoint_id}", operation_id="delete_webhook_endpoint")
def delete_webhook_endpoint(
    endpoint_id: str, installation: InstallationOf, caller: CallerOf
) -> WebhookEndpointDeleted:
    """Delete an endpoint with its log; what was still to be sent to it is not sent."""

    def delete(session: Session) -> bool:
        endpoint = _locked(session, caller, endpoint_id)
        webhooks.delete_endpoint(session, endpoint)
        return True

    def is_gone(session: Session) -> bool | None:
        return True if session.get(WebhookEndpoint, endpoint_id) is None else None

    installation.database.run(delete, recall=is_gone)
    return WebhookEndpointDeleted(id=endpoint_id)


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    operation_id="rotate_webhook_secret",
    openapi_extra=json_body(RotateSecretRequest, required=False),
)
def rotate_webhook_secret(
    endpoint_id: str,
    body: Annotated[RotateSecretRequest, Depends(optional_body_of(RotateSecretRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> WebhookEndpointWithSecret:
    """Give an endpoint a new secret, shown in this answer alone.

    With `keep_old_secret_active_for_24_hours` messages have two signatures meanwhile; else the old secret is
    worthless at once.
    """
    secret = new_secret()

    def rotate(session: Session) -> WebhookEndpoint:
        endpoint = _locked(session, caller, endpoint_id)
        webhooks.rotate_secret(
            endpoint,
            secret,
            keeps_old=body.keep_old_secret_active_for_24_hours,
            installation_key=installation.installation_key,
            now=clock(session),
        )
        return endpoint

    def find(session: Session) -> WebhookEndpoint | None:
        endpoint = session.get(WebhookEndpoint, endpoint_id)
        return endpoint if endpoint is not None and endpoint.secret_hint == hint_of(secret) else None

    return endpoint_with_secret(installation.database.run(rotate, recall=find), secret)


@router.post(
    "/webhook_endpoints/{endpoint_id}/test",
    operation_id="test_webhook_endpoint",
    openapi_extra=json_body(WebhookTestRequest),
)
def test_webhook_endpoint(
    endpoint_id: str,
    body: Annotated[WebhookTestRequest, Depends(body_of(WebhookTestRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> WebhookEndpointTest:
    """Send a sample event now, once, and tell what the target answered; it does not stand in the log."""
    with installation.database.reading() as session:
        now = clock(session)
        endpoint = repository.get_webhook_endpoint(session, caller.project_id, endpoint_id)
        secrets = _secrets_of(installation, endpoint, session)
    event = WebhookEvent(new_id("evt_"), body.event_type, _SAMPLE_ID, now)
    if not _TESTS_AT_ONCE.acquire(blocking=False):
        raise LuthierError("Too many webhooks are being tested now: try again", "not_done_yet")
    try:
        sending = send(
            endpoint.url,
            event,
            secrets,
            installation.settings.webhook_rules,
            timeout_seconds=installation.settings.webhook_timeout_seconds,
            now=now,
            start_resolving=start_asking,
        )
        answer = asyncio.run(sending)
    finally:
        _TESTS_AT_ONCE.release()
    if answer.status_code is None:
        raise LuthierError(f"The sample did not arrive: {answer.error}", "webhook_unreachable")
    return WebhookEndpointTest(
        webhook_endpoint_id=endpoint.id,
        event_type=body.event_type,
        status_code=answer.status_code,
        milliseconds=answer.milliseconds,
    )


@router.get("/webhook_endpoints/{endpoint_id}/deliveries", operation_id="list_webhook_deliveries")
def list_webhook_deliveries(
    endpoint_id: str,
    installation: InstallationOf,
    caller: CallerOf,
    after: After = None,
    limit: Limit = _DEFAULT_LIMIT,
) -> ListPage[WebhookDeliveryObject]:
    """List the attempts to tell an endpoint of something, newest first; they are kept for 30 days."""
    with installation.database.reading() as session:
        endpoint = repository.get_webhook_endpoint(session, caller.project_id, endpoint_id)
        page = repository.list_webhook_deliveries(session, endpoint, after=after, limit=min(limit, MAX_LIMIT))
    return page_of([delivery_object(delivery) for delivery in page.data], has_more=page.has_more)


@router.post(
    "/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    operation_id="redeliver_webhook",
)
def redeliver_webhook(
    endpoint_id: str, delivery_id: str, installation: InstallationOf, caller: CallerOf
) -> WebhookDeliveryObject:
    """Send the message of an attempt again, under the same `webhook-id`, whatever became of it."""

    def redeliver(session: Session) -> WebhookDeliveryObject:
        endpoint = _locked(session, caller, endpoint_id)
        delivery = repository.get_webhook_delivery(session, endpoint, delivery_id)
        webhooks.redeliver(session, endpoint, delivery, now=clock(session))
        return delivery_object(delivery)

    return installation.database.run(redeliver)


def _locked(session: Session, caller: Caller, endpoint_id: str) -> WebhookEndpoint:
    """An endpoint that is about to be changed."""
    return repository.get_webhook_endpoint(session, caller.project_id, endpoint_id, is_locked=True)


def _secrets_of(installation: Installation, endpoint: WebhookEndpoint, session: Session) -> list[str]:
    key = installation.installation_key
    try:
        return list(deliveries.signing_secrets(endpoint, key, now=clock(session)))
    except SealError as error:
        text = "The endpoint's secret was sealed under another key of this installation: rotate it"
        raise LuthierError(text, "webhook_unreachable") from error
