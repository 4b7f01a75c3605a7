"""The HTTP server: uvicorn, set up once for the process that people start and for servers in tests.

A client that takes nothing of an answer for half a minute is let go: it holds memory, perhaps a file, and a
stop would wait for it.
"""

import asyncio
import socket
from functools import partial
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.streams.broadcast import Broadcast

# Less than the 60 s after which Compose and systemd kill: an upload that is on its way may end.
_GRACE_SECONDS = 50

log = structlog.get_logger()


class Server(uvicorn.Server):
    """A server that says when it can be reached, and ends streams at once when it is stopped.

    Args:
        app: of `create_app`.
        stall_seconds: after which a client that takes nothing is let go.
        options: more of uvicorn's settings, such as `host` and `port`.
    """

    def __init__(self, app: FastAPI, *, stall_seconds: float = 30.0, **options: Any) -> None:
        protocol: Any = partial(_Protocol, stall_seconds=stall_seconds)
        config = uvicorn.Config(
            app,
            http=protocol,
            server_header=False,
            # `Proxies` believes those that the settings name; the server's own headers would come before it.
            proxy_headers=False,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            **options,
        )
        super().__init__(config)
        self._broadcast: Broadcast = app.state.broadcast

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("api_listens", host=self.config.host, port=self.config.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._broadcast.close()
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """A connection that is broken off once its client has taken nothing for `stall_seconds`.

    Closing it would not do: that waits for the client to take what is left.
    """

    def __init__(self, *arguments: Any, stall_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stall_seconds = stall_seconds
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Writing is paused for as long as the client is behind at all, also with a short answer.
        transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_looking()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_looking()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._look = self.loop.call_later(self._stall_seconds, self._look_again, left)

    def _look_again(self, left_before: int) -> None:
        if self.transport.get_write_buffer_size() < left_before:
            self._look_later()
        else:
            self.transport.abort()

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
