"""A real server on loopback in a thread of the tests' own process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from api.server import Server

_END_SECONDS = 60


@contextmanager
def serving(app: FastAPI, *, backlog: int = 128, **options: Any) -> Iterator[str]:
    """URL of the application, until the block ends; `options` are those of `Server`."""
    # Who connects before the server is up waits in the listener's queue.
    listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
    server = Server(app, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(_END_SECONDS)
        assert not thread.is_alive(), "the server does not end"
