"""Answers that last as long as there is something to come, or the client reads.

A client that takes nothing for half a minute is let go: its connection holds memory.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_SEND_SECONDS = 30.0
# A proxy that collects an answer before it passes it on would hold back all of it.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}


class LastingResponse(Response):
    """Chunks as they come, empty ones left out."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(headers=_HEADERS, media_type=media_type)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002, ASGI's form
        is_taken = True
        async with anyio.create_task_group() as group:

            async def leave_with_the_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(leave_with_the_client)
            is_taken = await self._send(send)
            group.cancel_scope.cancel()
        if not is_taken:
            raise ClientDisconnect

    async def _send(self, send: Send) -> bool:
        """False where the client takes nothing any more."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                if chunk and not await _sends_in_time(send, chunk, more_body=True):
                    return False
        return await _sends_in_time(send, b"", more_body=False)


async def _sends_in_time(send: Send, chunk: bytes, *, more_body: bool) -> bool:
    with anyio.move_on_after(_SEND_SECONDS) as scope:
        await send({"type": "http.response.body", "body": chunk, "more_body": more_body})
    return not scope.cancelled_caught
