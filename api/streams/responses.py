"""Answers that last as long as there is something to come, or the client reads."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Send

# A proxy that collects an answer before it passes it on would hold back all of it.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}


class LastingResponse(StreamingResponse):
    """Chunks as they come; whoever makes them is told when the client has left."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(chunks, headers=_HEADERS, media_type=media_type)
        self._chunks = chunks

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._chunks):
            await super().stream_response(send)
