"""Who may call what: every path wants a bearer key, but for the few that are named here.

It stands before the routes and before any body is read, so that a path added later, or one that does not
exist, is closed too. The caller's project goes on in `request.state.caller`.
"""

import ipaddress
import time
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi import Request
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.database import clock
from luthier.installation import Installation
from luthier.service import access
from luthier.service.jobs import Caller

PUBLIC = frozenset({"/livez", "/readyz", "/openapi.json", "/docs"})
LOCAL = frozenset({"/metrics"})
_USE_GRAIN_SECONDS = 60.0


class Access:
    """ASGI middleware that lets requests with a key pass."""

    def __init__(self, app: ASGIApp, installation: Installation) -> None:
        self._app, self._installation = app, installation
        self._recorded_at: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            request = Request(scope)
            request.state.caller = await run_in_threadpool(self._authenticate, _bearer_of(request))
        await self._app(scope, receive, send)

    def _authenticate(self, presented: str | None) -> Caller:
        with self._installation.database.reading() as session:
            caller = access.authenticate(
                session, presented, installation_key=self._installation.installation_key
            )
        self._record_use(caller.api_key_id)
        return caller

    def _record_use(self, key_id: str) -> None:
        """Note the use of a key, with one write a minute and process."""
        now = time.monotonic()
        if now - self._recorded_at.get(key_id, -_USE_GRAIN_SECONDS) < _USE_GRAIN_SECONDS:
            return
        self._recorded_at[key_id] = now
        # A request does not fail for want of this note: the disk may be full, and it may only read.
        with suppress(DBAPIError), self._installation.database.transaction() as session:
            access.record_use(session, key_id, now=clock(session))


def _is_open(scope: Scope) -> bool:
    return scope["path"] in PUBLIC or (scope["path"] in LOCAL and _is_local(Request(scope)))


def _bearer_of(request: Request) -> str | None:
    """The key of the one Authorization header; None where there is none, several, or another scheme."""
    values = request.headers.getlist("authorization")
    scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else None


def _is_local(request: Request) -> bool:
    """Whether a process of this machine asks for this machine by name.

    The name matters too: a page in a local browser can have its own name lead to loopback.
    """
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        client = ipaddress.ip_address(request.client.host if request.client else "")
        return client.is_loopback and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False
