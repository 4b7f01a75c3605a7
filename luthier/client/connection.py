"""The two ways to run a call: over a connection that blocks, or over one on an event loop.

Both send what a call's steps ask for, and nothing else; what is sent, and what is repeated, the steps know.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from typing import Any
from urllib.parse import urlsplit

import httpx

from luthier import __version__
from luthier.client.address import checked_key, checked_url, find_address, find_key
from luthier.client.calls import Awaiting, Waiting
from luthier.client.errors import error_of, unreachable
from luthier.client.retries import Policy
from luthier.client.steps import (
    Chunk,
    Flow,
    Item,
    Open,
    Pause,
    Reply,
    Request,
    Send,
    Step,
    Steps,
    T,
    Work,
)

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# A small upload is checked within its request.
TIMEOUT_SECONDS, _CONNECT_SECONDS = 120.0, 5.0


class Connection(Waiting):
    """A connection that blocks; the resources of a client share one.

    Args:
        base_url, api_key, profile, timeout_seconds, max_retries: as for `Client`.
        pause: waits some seconds.
        transport: how requests travel; default: the network.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        profile: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = 3,
        pause: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, settings = _settings(base_url, api_key, profile, timeout_seconds)
        self.pause, self.policy = pause, Policy(max_retries)
        self._http = httpx.Client(**settings, transport=transport)

    def close(self) -> None:
        self._http.close()

    def run(self, steps: Steps[T]) -> T:
        with closing(self.iterate(_as_flow(steps))) as values:
            return next(values)

    def iterate(self, flow: Flow[T]) -> Generator[T, None, None]:
        body = _Body(self._http)
        answer: Any = None
        error: Exception | None = None
        with closing(flow), body.stack:
            while True:
                try:
                    step = flow.send(answer) if error is None else flow.throw(error)
                except StopIteration:
                    return
                answer, error = None, None
                if isinstance(step, Item):
                    yield step.value
                    continue
                try:
                    answer = self._do(step, body)
                except httpx.TransportError as raised:
                    error = unreachable(self.url, raised)
                    error.__cause__ = raised
                except Exception as raised:  # noqa: BLE001, the call decides what becomes of it
                    error = raised

    def _do(self, step: Step, body: "_Body") -> Any:
        match step:
            case Send(request):
                return _reply(self._http.request(**_arguments(request)))
            case Open(request):
                return body.open(request)
            case Chunk():
                return next(body.chunks, None)
            case Pause(seconds):
                return self.pause(seconds)
            case Work(action):
                return action()


class AsyncConnection(Awaiting):
    """The same on an event loop; what takes its time is done in a thread.

    Args: as for `Connection`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        profile: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = 3,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, settings = _settings(base_url, api_key, profile, timeout_seconds)
        self.pause, self.policy = pause, Policy(max_retries)
        self._http = httpx.AsyncClient(**settings, transport=transport)

    async def close(self) -> None:
        await self._http.aclose()

    async def run(self, steps: Steps[T]) -> T:
        async with aclosing(self.iterate(_as_flow(steps))) as values:
            return await anext(values)

    async def iterate(self, flow: Flow[T]) -> AsyncGenerator[T, None]:
        body = _AsyncBody(self._http)
        answer: Any = None
        error: Exception | None = None
        with closing(flow):
            async with body.stack:
                while True:
                    try:
                        step = flow.send(answer) if error is None else flow.throw(error)
                    except StopIteration:
                        return
                    answer, error = None, None
                    if isinstance(step, Item):
                        yield step.value
                        continue
                    try:
                        answer = await self._do(step, body)
                    except httpx.TransportError as raised:
                        error = unreachable(self.url, raised)
                        error.__cause__ = raised
                    except Exception as raised:  # noqa: BLE001, the call decides what becomes of it
                        error = raised

    async def _do(self, step: Step, body: "_AsyncBody") -> Any:
        match step:
            case Send(request):
                return _reply(await self._http.request(**_arguments(request)))
            case Open(request):
                return await body.open(request)
            case Chunk():
                return await anext(body.chunks, None)
            case Pause(seconds):
                return await self.pause(seconds)
            case Work(action):
                return await asyncio.to_thread(action)


class _Body:
    """The body that is open, if one is."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.stack = ExitStack()
        self.chunks: Iterator[bytes] = iter(())

    def open(self, request: Request) -> Reply:
        self.stack.close()
        response = self.stack.enter_context(self._http.stream(**_arguments(request, is_streamed=True)))
        if response.next_request is not None:
            # To the bucket that has the bytes: another server, which never sees the key.
            bucket = self.stack.enter_context(httpx.Client(timeout=self._http.timeout))
            response = bucket.send(response.next_request, stream=True)
            self.stack.callback(response.close)
        if response.is_error:
            response.read()
            raise error_of(response)
        self.chunks = response.iter_raw()
        return Reply(response.status_code, response.headers)


class _AsyncBody:
    """The same on an event loop."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.stack = AsyncExitStack()
        self.chunks: AsyncIterator[bytes] = _nothing()

    async def open(self, request: Request) -> Reply:
        await self.stack.aclose()
        stream = self._http.stream(**_arguments(request, is_streamed=True))
        response = await self.stack.enter_async_context(stream)
        if response.next_request is not None:
            bucket = await self.stack.enter_async_context(httpx.AsyncClient(timeout=self._http.timeout))
            response = await bucket.send(response.next_request, stream=True)
            self.stack.push_async_callback(response.aclose)
        if response.is_error:
            await response.aread()
            raise error_of(response)
        self.chunks = response.aiter_raw()
        return Reply(response.status_code, response.headers)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _settings(
    base_url: str | None, api_key: str | None, profile_name: str | None, timeout_seconds: float
) -> tuple[str, dict[str, Any]]:
    """The server's address, and how httpx is to call it."""
    url = checked_url(base_url or find_address(profile_name))
    key = checked_key(api_key or find_key(url, profile_name))
    return url, {
        "base_url": f"{url}/v1",
        "headers": {"Authorization": f"Bearer {key}", "User-Agent": f"luthier/{__version__}"},
        "timeout": httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
        # Reading the certificates takes longer than most calls; this client follows no redirect.
        "verify": url.startswith("https:"),
        # A proxy of the environment leads out of this machine, never back to it.
        "trust_env": urlsplit(url).hostname not in _LOOPBACK,
    }


def _arguments(request: Request, *, is_streamed: bool = False) -> dict[str, Any]:
    # Bodies in chunks are taken as they are: a decoded one would not fit its ranges and its hash.
    own = {"Accept-Encoding": "identity"} if is_streamed else {}
    return {
        "method": request.method,
        "url": request.path,
        "headers": {**own, **request.headers},
        **request.arguments,
    }


def _reply(response: httpx.Response) -> Reply:
    if not (response.is_success or response.status_code == httpx.codes.NOT_MODIFIED):
        raise error_of(response)
    return Reply(response.status_code, response.headers, response.content)


def _as_flow(steps: Steps[T]) -> Flow[T]:
    """Steps whose result is their one value."""
    result = yield from steps
    yield Item(result)
