"""A server on loopback that answers as a test scripts it, and remembers what it was asked."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from luthier.client.calls import AsyncRows
from luthier.client.connection import AsyncConnection, Connection
from luthier.client.files import Files
from luthier.client.jobs import Jobs
from luthier.client.models import Models

KEY = "lk_test"


@dataclass
class Reply:
    """One answer. `cut_after` breaks the connection behind so many bytes of the body."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class ScriptedServer:
    """Gives the replies of `script` in their order; the last one again and again."""

    reply = Reply

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.asked: list[Asked] = []
        self.pauses: list[float] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, *replies: Reply | dict[str, Any]) -> None:
        self.script = [
            reply if isinstance(reply, Reply) else Reply(json.dumps(reply).encode()) for reply in replies
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.asked.append(Asked(self.command, self.path, headers, body))
                reply = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body[: reply.cut_after])
                self.close_connection = self.close_connection or reply.cut_after is not None

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815, names of the base class

            def log_message(self, *_: object) -> None:
                """Tests are silent."""

        return Handler


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def bucket() -> Iterator[ScriptedServer]:
    """A second one, which a first one sends its clients to."""
    bucket = ScriptedServer()
    yield bucket
    bucket.close()


class Waited:
    """A resource of an asynchronous client, each of whose calls is waited for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any) -> None:
        self._loop, self._inner = loop, inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return (lambda *given, **named: self._settled(found(*given, **named))) if callable(found) else found

    def __iter__(self) -> Iterator[Any]:
        rows = aiter(self._inner)
        while (row := self._loop.run_until_complete(anext(rows, None))) is not None:
            yield row

    def _settled(self, value: Any) -> Any:
        if isinstance(value, Awaitable):
            return self._loop.run_until_complete(value)  # type: ignore[arg-type]
        return Waited(self._loop, value) if isinstance(value, AsyncIterator | AsyncRows) else value


@dataclass
class Called:
    """A client of the scripted server; its pauses are written down in the place of being waited for."""

    files: Any
    jobs: Any
    models: Any


@pytest.fixture(params=["blocking", "asynchronous"])
def client(request: pytest.FixtureRequest, server: ScriptedServer) -> Iterator[Called]:
    """Both clients, which are called alike."""
    if request.param == "blocking":
        connection = Connection(server.url, KEY, pause=server.pauses.append)
        yield Called(Files(connection), Jobs(connection), Models(connection))
        connection.close()
        return

    async def pause(seconds: float) -> None:
        server.pauses.append(seconds)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        other = AsyncConnection(server.url, KEY, pause=pause)
        yield Called(*(Waited(loop, part(other)) for part in (Files, Jobs, Models)))
        loop.run_until_complete(other.close())


@pytest.fixture
def error_reply() -> Callable[..., Reply]:
    """An error as Luthier's API writes it."""

    def make(status: int, message: str = "no", code: str = "invalid_value", **headers: str) -> Reply:
        error = {"message": message, "type": "invalid_request_error", "param": "qlora.r", "code": code}
        return Reply(json.dumps({"error": error}).encode(), status, {"x-request-id": "req_1", **headers})

    return make
