"""Secrets of a project, such as tokens of the hub: they go in and never come out."""

from luthier.client.calls import Query, Resource, Runner, call, listing
from luthier.client.objects import Page, Secret
from luthier.client.steps import Request, Steps, segment

_PATH = "/secrets"


class Secrets(Resource[Runner]):
    """`/v1/secrets`."""

    @call
    def set(self, name: str, value: str) -> Steps[Secret]:
        """Set a secret, or replace the one of that name."""
        body = {"json": {"name": name, "value": value}}
        return self._ask(Secret, Request("POST", _PATH, body, is_repeatable=True))

    @listing
    def list(self, *, after: str | None = None, limit: int = 20) -> Query[Secret]:
        """Secrets, newest first, without their texts."""
        return Query(Page[Secret], _PATH, {"after": after, "limit": limit})

    @call
    def get(self, name: str) -> Steps[Secret]:
        """When a secret was set."""
        return self._ask(Secret, Request("GET", f"{_PATH}/{segment(name)}"))

    @call
    def delete(self, name: str) -> Steps[None]:
        """Forget a secret; jobs that name it wait until it is set again."""
        yield from self._send(Request("DELETE", f"{_PATH}/{segment(name)}"))
