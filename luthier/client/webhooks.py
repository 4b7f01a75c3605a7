"""Webhook endpoints: who is told of jobs, and the log of what became of it."""

import builtins
from collections.abc import Sequence
from typing import Any

from luthier.client.calls import Query, Resource, Runner, call, listing
from luthier.client.objects import Answer, Page, WebhookDelivery, WebhookEndpoint, WebhookTest
from luthier.client.steps import Request, Steps, segment

_PATH = "/webhook_endpoints"


class _EventTypes(Answer):
    data: list[str]


class Webhooks(Resource[Runner]):
    """`/v1/webhook_endpoints`. Messages are verified with `openai`'s `webhooks.unwrap`, or by hand."""

    @call
    def create(self, *, name: str, url: str, event_types: Sequence[str]) -> Steps[WebhookEndpoint]:
        """Add an endpoint; its `signing_secret` is shown in this answer alone."""
        body = {"name": name, "url": url, "event_types": [*event_types]}
        return self._ask(WebhookEndpoint, Request("POST", _PATH, {"json": body}))

    @listing
    def list(self, *, after: str | None = None, limit: int = 20) -> Query[WebhookEndpoint]:
        """Endpoints, newest first."""
        return Query(Page[WebhookEndpoint], _PATH, {"after": after, "limit": limit})

    @call
    def get(self, endpoint_id: str) -> Steps[WebhookEndpoint]:
        """One endpoint."""
        return self._ask(WebhookEndpoint, Request("GET", _path(endpoint_id)))

    @call
    def update(self, /, endpoint_id: str, **changes: Any) -> Steps[WebhookEndpoint]:
        """Change `name`, `url`, `event_types` or `status` (enabled, disabled)."""
        request = Request("POST", _path(endpoint_id), {"json": changes}, is_repeatable=True)
        return self._ask(WebhookEndpoint, request)

    @call
    def delete(self, endpoint_id: str) -> Steps[None]:
        """Delete an endpoint with its log."""
        yield from self._send(Request("DELETE", _path(endpoint_id)))

    @call
    def rotate_secret(self, endpoint_id: str, *, keep_old: bool = False) -> Steps[WebhookEndpoint]:
        """A new `signing_secret`; with `keep_old` the one before signs, too, for 24 hours."""
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        return self._ask(
            WebhookEndpoint, Request("POST", f"{_path(endpoint_id)}/rotate_secret", {"json": body})
        )

    @call
    def test(self, endpoint_id: str, event_type: str) -> Steps[WebhookTest]:
        """Have a sample sent, and learn what the target answered."""
        body = {"event_type": event_type}
        return self._ask(WebhookTest, Request("POST", f"{_path(endpoint_id)}/test", {"json": body}))

    @call
    def event_types(self) -> Steps[builtins.list[str]]:
        """All events that can be told."""
        reply = yield from self._send(Request("GET", "/webhook_event_types"))
        return _EventTypes.read(reply.content).data

    @listing
    def deliveries(
        self, endpoint_id: str, *, after: str | None = None, limit: int = 20
    ) -> Query[WebhookDelivery]:
        """The attempts, newest first."""
        params = {"after": after, "limit": limit}
        return Query(Page[WebhookDelivery], f"{_path(endpoint_id)}/deliveries", params)

    @call
    def redeliver(self, endpoint_id: str, delivery_id: str) -> Steps[WebhookDelivery]:
        """Have the message of an attempt sent again."""
        path = f"{_path(endpoint_id)}/deliveries/{segment(delivery_id)}/redeliver"
        return self._ask(WebhookDelivery, Request("POST", path))


def _path(endpoint_id: str) -> str:
    return f"{_PATH}/{segment(endpoint_id)}"
