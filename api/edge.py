"""The outermost layer: an id, a log line and a count for every request, and an answer in any case.

An answer that is given before the body has been read whole (401, 413) would be lost: closing a connection
with unread data resets it. So what still comes is read for a short while, and thrown away, after the answer.
"""

import re
import time

import anyio
import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import get_route_path  # type: ignore[attr-defined]
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import describe, error_response
from api.request_counts import RequestCounts
from luthier.errors import LuthierError, printable
from luthier.ids import new_id

REQUEST_ID = "x-request-id"
# In a request's state: headers that its answer gets, whoever gives it.
ANSWER_HEADERS = "answer_headers"
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DRAIN_SECONDS = 2.0
_UNLOGGED = frozenset({"/livez", "/readyz", "/metrics"})

log = structlog.get_logger()


class Edge:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, counts: RequestCounts) -> None:
        self._app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(self._app, scope, receive, send, self._counts).run()
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, counts: RequestCounts
    ) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._counts = counts
        headers = Headers(scope=scope)
        asked = headers.get(REQUEST_ID, "")
        self._id = asked if _ACCEPTED_ID.fullmatch(asked) else new_id("req")
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        # Whoever waits for 100 Continue sends nothing until it is asked to.
        self._is_body_coming = has_body and headers.get("expect", "").lower() != "100-continue"
        self._status: int | None = None

    async def run(self) -> None:
        started = time.perf_counter()
        request = Request(self._scope, self._read, self._write)
        request.state.request_id = self._id
        try:
            await self._app(self._scope, self._read, self._write)
        except ClientDisconnect:
            log.info("client_disconnected", request_id=self._id)
        except Exception as error:
            if not isinstance(error, LuthierError):
                log.exception("request_failed", request_id=self._id)
            # What has begun can only be broken off, so that the client does not take it for whole.
            if self._status is not None:
                self._count(500)
                raise
            await error_response(request, describe(request, error))(self._scope, self._read, self._write)
        self._count(self._status)
        if not self._is_probe():
            log.info(
                "request",
                method=printable(self._scope["method"], 20),
                path=printable(self._scope["path"], 200),
                status=self._status,
                seconds=round(time.perf_counter() - started, 4),
                request_id=self._id,
            )

    def _count(self, status: int | None) -> None:
        """Count the answer, where there is one and a probe has not asked for it."""
        if status is not None and not self._is_probe():
            self._counts.add(self._scope, status)

    def _is_probe(self) -> bool:
        return get_route_path(self._scope) in _UNLOGGED

    async def _read(self) -> Message:
        message = await self._receive()
        self._is_body_coming = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def _write(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._id
            headers.update(self._scope["state"].get(ANSWER_HEADERS, {}))
        elif self._is_body_coming and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drain(self) -> None:
        """Let the client send on, so that it comes to read the answer."""
        with anyio.move_on_after(_DRAIN_SECONDS):
            while self._is_body_coming:
                await self._read()
