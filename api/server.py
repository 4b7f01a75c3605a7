"""The HTTP server: uvicorn, set up once for the process that people start and for servers in tests."""

import socket
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from api.streams.broadcast import Broadcast

# Less than the 60 s after which Compose and systemd kill: an upload that is on its way may end.
_GRACE_SECONDS = 50

log = structlog.get_logger()


class Server(uvicorn.Server):
    """A server that says when it can be reached, and ends streams at once when it is stopped.

    Args:
        app: of `create_app`.
        options: more of uvicorn's settings, such as `host` and `port`.
    """

    def __init__(self, app: FastAPI, **options: Any) -> None:
        config = uvicorn.Config(
            app,
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
