"""Who may call what: every path wants a bearer key with the right scope, but for the few that are named here.

It stands before the routes and before any body is read, so that a path added later, or one that does not
exist, is closed too. The caller's project goes on in `request.state.caller`; what it changes is put down to
it (`luthier.audit`).
"""

import asyncio
import ipaddress
import time
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi import Request
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

# What routing itself goes by: a path that it read otherwise would pass by the table below.
from starlette.routing import get_route_path  # type: ignore[attr-defined]
from starlette.types import ASGIApp, Receive, Scope, Send

from api.edge import ANSWER_HEADERS
from api.key_cache import KeyCache, Presented
from api.proxies import was_forwarded
from api.rate_limits import Requests
from api.refused_keys import RefusedKeys
from luthier.audit import Actor, acting_as
from luthier.database import clock
from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.service import access
from luthier.service.access import ADMIN, READ, WRITE, Grant

PUBLIC = frozenset({"/livez", "/readyz", "/openapi.json", "/docs"})
LOCAL = frozenset({"/metrics"})
# Below these, every method wants the scope `admin`.
_ADMIN_PATHS = ("/v1/organization",)
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_USE_GRAIN_SECONDS = 60.0
_POLICY_VIOLATION = 1008


def scope_for(method: str, path: str) -> str:
    """The scope that a request wants."""
    if any(path == root or path.startswith(f"{root}/") for root in _ADMIN_PATHS):
        return ADMIN
    return READ if method in _READING else WRITE


class Access:
    """ASGI middleware that lets requests with a key pass."""

    def __init__(self, app: ASGIApp, installation: Installation) -> None:
        self._app, self._installation = app, installation
        self._keys = KeyCache()
        self._refused = RefusedKeys(installation.settings.wrong_keys_per_minute)
        self._requests = Requests(installation.settings.requests_per_minute)
        self._recorded_at: dict[str, float] = {}
        self._asking: dict[Presented, asyncio.Task[Grant]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # There are none, and one that is added would come in without a key.
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        grant = await self._enter(_presented_by(request), _address_of(request))
        request.state.caller = grant.caller
        if allowance := self._requests.count(grant):
            setattr(request.state, ANSWER_HEADERS, allowance.headers)
            allowance.require()
        needed = scope_for(scope["method"], get_route_path(scope))
        grant.require(needed, deletes=scope["method"] == "DELETE")
        with acting_as(_actor_of(request, grant)):
            await self._app(scope, receive, send)

    async def _enter(self, presented: Presented, address: str | None) -> Grant:
        if (grant := self._keys.find(presented)) is not None:
            return grant
        access.require_shape(presented.key)
        if not self._keys.has_known(presented):
            self._refused.require_few(address)
        # Of many that bring a key at once, one asks.
        if (asking := self._asking.get(presented)) is None:
            asking = self._asking[presented] = asyncio.create_task(self._ask(presented))
            asking.add_done_callback(lambda _: self._asking.pop(presented))
        try:
            return await asyncio.shield(asking)
        except LuthierError as error:
            if error.code == access.INVALID:
                self._refused.count(address)
            raise

    async def _ask(self, presented: Presented) -> Grant:
        asked_at = time.monotonic()
        grant = await run_in_threadpool(self._authenticate, presented)
        self._keys.keep(presented, asked_at, grant)
        return grant

    def _authenticate(self, presented: Presented) -> Grant:
        with self._installation.database.reading() as session:
            grant = access.authenticate(
                session,
                presented.key,
                installation_key=self._installation.installation_key,
                now=clock(session),
                organization=presented.organization,
                project=presented.project,
            )
        # A request does not fail for want of these notes: the disk may be full, and it may only read.
        with suppress(DBAPIError):
            self._record_use(grant.caller.api_key_id)
        with suppress(DBAPIError):
            if self._requests.limit_of(grant) is not None:
                self._requests.share(self._installation.database, grant)
        return grant

    def _record_use(self, key_id: str) -> None:
        """Note the use of a key, with one write a minute and process."""
        now = time.monotonic()
        if now - self._recorded_at.get(key_id, -_USE_GRAIN_SECONDS) < _USE_GRAIN_SECONDS:
            return
        self._recorded_at[key_id] = now
        with self._installation.database.transaction() as session:
            access.record_use(session, key_id, now=clock(session))


def _is_open(scope: Scope) -> bool:
    path = get_route_path(scope)
    return path in PUBLIC or (path in LOCAL and _is_local(Request(scope)))


def _presented_by(request: Request) -> Presented:
    headers = request.headers
    return Presented(_bearer_of(request), headers.get("openai-organization"), headers.get("openai-project"))


def _actor_of(request: Request, grant: Grant) -> Actor:
    return Actor(
        organization_id=grant.caller.organization_id,
        api_key_id=grant.caller.api_key_id,
        request_id=request.state.request_id,
        address=_address_of(request),
    )


def _address_of(request: Request) -> str | None:
    return request.client.host if request.client else None


def _bearer_of(request: Request) -> str | None:
    """The key of the one Authorization header; None where there is none, several, or another scheme."""
    values = request.headers.getlist("authorization")
    scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else None


def _is_local(request: Request) -> bool:
    """Whether a process of this machine asks for this machine by name, and for nobody else.

    The name matters too: a page in a local browser can have its own name lead to loopback.
    """
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        client = ipaddress.ip_address(request.client.host if request.client else "")
        is_by_name = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    return client.is_loopback and is_by_name and not was_forwarded(request)
