"""Webhook endpoints: who is told of jobs, and the log of what became of it."""

from collections.abc import Sequence
from typing import Any

from luthier.client.connection import Connection
from luthier.client.objects import Page, WebhookDelivery, WebhookEndpoint, WebhookTest

_PATH = "/webhook_endpoints"


class Webhooks:
    """`/v1/webhook_endpoints`. Messages are verified with `openai`'s `webhooks.unwrap`, or by hand."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, *, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpoint:
        """Add an endpoint; its `signing_secret` is shown in this answer alone."""
        body = {"name": name, "url": url, "event_types": list(event_types)}
        response = self._connection.request("POST", _PATH, json=body)
        return WebhookEndpoint.model_validate_json(response.content)

    def list(self, *, after: str | None = None, limit: int = 20) -> Page[WebhookEndpoint]:
        """One page, newest first."""
        return Page[WebhookEndpoint].model_validate_json(self._page(_PATH, after, limit))

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        response = self._connection.request("GET", f"{_PATH}/{endpoint_id}")
        return WebhookEndpoint.model_validate_json(response.content)

    def update(self, endpoint_id: str, **changes: Any) -> WebhookEndpoint:
        """Change `name`, `url`, `event_types` or `status` (enabled, disabled)."""
        response = self._connection.request(
            "POST", f"{_PATH}/{endpoint_id}", is_repeatable=True, json=changes
        )
        return WebhookEndpoint.model_validate_json(response.content)

    def delete(self, endpoint_id: str) -> None:
        self._connection.request("DELETE", f"{_PATH}/{endpoint_id}")

    def rotate_secret(self, endpoint_id: str, *, keep_old: bool = False) -> WebhookEndpoint:
        """A new `signing_secret`; with `keep_old` the one before signs, too, for 24 hours."""
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        response = self._connection.request("POST", f"{_PATH}/{endpoint_id}/rotate_secret", json=body)
        return WebhookEndpoint.model_validate_json(response.content)

    def test(self, endpoint_id: str, event_type: str) -> WebhookTest:
        """Have a sample sent, and learn what the target answered."""
        body = {"event_type": event_type}
        response = self._connection.request("POST", f"{_PATH}/{endpoint_id}/test", json=body)
        return WebhookTest.model_validate_json(response.content)

    def event_types(self) -> Sequence[str]:
        """All events that can be told."""
        names: list[str] = self._connection.request("GET", "/webhook_event_types").json()["data"]
        return names

    def deliveries(
        self, endpoint_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[WebhookDelivery]:
        """One page of the attempts, newest first."""
        page = self._page(f"{_PATH}/{endpoint_id}/deliveries", after, limit)
        return Page[WebhookDelivery].model_validate_json(page)

    def redeliver(self, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
        """Have the message of an attempt sent again."""
        path = f"{_PATH}/{endpoint_id}/deliveries/{delivery_id}/redeliver"
        return WebhookDelivery.model_validate_json(self._connection.request("POST", path).content)

    def _page(self, path: str, after: str | None, limit: int) -> bytes:
        params: dict[str, str | int] = {"limit": limit} if after is None else {"limit": limit, "after": after}
        return self._connection.request("GET", path, params=params).content
