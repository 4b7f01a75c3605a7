"""One HTTP connection to a Luthier server: its address, its key, repeated calls, and one kind of error.

Calls that may be repeated without harm (GET, DELETE, wishes, a new job with its key) are sent again after a
growing pause when the connection breaks or the server says 429 or 503; a `Retry-After` of the server wins.
All else is sent once.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from luthier import __version__
from luthier.artifacts import sha256_of
from luthier.settings import Settings

SERVER_FILE = "server.json"
URL_VARIABLE, KEY_VARIABLE = "LUTHIER_URL", "LUTHIER_API_KEY"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_BUSY = frozenset({429, 503})
# Waiting is then the caller's choice: room comes when a job ends or something is deleted.
_QUOTA = "quota_exceeded"
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
# A small upload is checked within its request.
_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_LOOK_SECONDS = 2.0
_CHUNK_BYTES = 1 << 18

Result = TypeVar("Result")
OnBytes = Callable[[int], None]


class ApiError(Exception):
    """A call that did not succeed.

    Attributes:
        message: what is wrong and what to change, in the server's words.
        status: HTTP status; None where no server answered.
        code, param: the server's error code and the field that it speaks of.
        details: all that is wrong where it is more than one thing, each with a `message`.
        request_id: finds the call in the server's log.
        retry_after_seconds: how long the server asks to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.details = details
        self.message, self.status, self.code, self.param = message, status, code, param
        self.request_id, self.retry_after_seconds = request_id, retry_after_seconds


class Connection:
    """Sends calls; the resources of the client share one.

    Args:
        base_url, api_key: as for `Client`.
        pause: waits some seconds between two attempts.
        transport: how requests travel; default: the network.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        pause: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = _checked_url(base_url or find_address())
        self.pause = pause
        self._http = httpx.Client(
            base_url=f"{self.url}/v1",
            headers={
                "Authorization": f"Bearer {_checked_key(api_key or os.environ.get(KEY_VARIABLE))}",
                "User-Agent": f"luthier/{__version__}",
            },
            timeout=_TIMEOUT,
            transport=transport,
            # A proxy of the environment leads out of this machine, never back to it.
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
        )

    def close(self) -> None:
        self._http.close()

    def request(
        self, method: str, path: str, *, is_repeatable: bool | None = None, **arguments: Any
    ) -> httpx.Response:
        """Send one call and return its good answer.

        Args:
            path: below `/v1`.
            is_repeatable: default: yes for GET and DELETE.
            arguments: of `httpx.Client.request`.
        Raises:
            ApiError: the server cannot be reached, or refused.
        """
        repeatable = method in ("GET", "DELETE") if is_repeatable is None else is_repeatable

        def send() -> httpx.Response:
            response = self._http.request(method, path, **arguments)
            _raise_for_status(response)
            return response

        return self._repeat(send, _ATTEMPTS if repeatable else 1)

    def download(
        self, path: str, target: Path, *, sha256: str | None = None, on_bytes: OnBytes | None = None
    ) -> None:
        """Write an answer's body to `target`, which appears only when it is whole.

        A broken connection is taken up where it broke, if the server serves ranges of this path.

        Args:
            sha256: hex; what the body must hash to.
            on_bytes: called with the number of bytes that lie on the disk so far.
        Raises:
            ApiError: as for `request`, or the hash is another.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        part.unlink(missing_ok=True)
        try:
            self._repeat(lambda: self._receive(path, part, on_bytes), _ATTEMPTS)
            if sha256 is not None and sha256_of(part) != sha256:
                raise ApiError(f"{target.name} arrived damaged: its SHA-256 is not the one of the server")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def read(self, path: str) -> Iterator[bytes]:
        """The chunks of an answer's body."""
        with self._stream(path, {}) as response:
            yield from response.iter_bytes(_CHUNK_BYTES)

    def _receive(self, path: str, part: Path, on_bytes: OnBytes | None) -> None:
        have = part.stat().st_size if part.exists() else 0
        with self._stream(path, {"Range": f"bytes={have}-"} if have else {}) as response:
            resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
            with part.open("ab" if resumed else "wb") as file:
                # Written as it comes, so that a broken connection loses nothing that has arrived.
                for chunk in response.iter_raw():
                    file.write(chunk)
                    if on_bytes is not None:
                        on_bytes(file.tell())

    @contextmanager
    def _stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        # Bodies are taken as they are: a decoded one would not fit its ranges and its hash.
        with self._http.stream("GET", path, headers={"Accept-Encoding": "identity", **headers}) as response:
            if response.is_error:
                response.read()
            _raise_for_status(response)
            yield response

    def _repeat(self, action: Callable[[], Result], attempts: int) -> Result:
        pause_seconds = _FIRST_PAUSE_SECONDS
        for attempt in range(1, attempts + 1):
            try:
                return action()
            except httpx.TransportError as error:
                if attempt == attempts:
                    raise _unreachable(self.url, error) from error
                wait = pause_seconds
            except ApiError as error:
                if attempt == attempts or error.status not in _BUSY or error.code == _QUOTA:
                    raise
                wait = error.retry_after_seconds or pause_seconds
            self.pause(min(wait, _LONGEST_PAUSE_SECONDS))
            pause_seconds *= 2
        raise AssertionError("the last attempt returns or raises")


def find_address() -> str:
    """The server's address: LUTHIER_URL, else what `luthier up` wrote into the data folder.

    Raises:
        ApiError: there is neither.
    """
    data = Settings().data
    if url := os.environ.get(URL_VARIABLE) or saved_address(data):
        return url
    raise ApiError(
        f"No server is known: set {URL_VARIABLE} to its address, or start one with `luthier up` "
        f"(it writes {data / SERVER_FILE})"
    )


def saved_address(data: Path) -> str | None:
    """The address of the server that runs on a data folder of this machine; None where none does."""
    try:
        return str(json.loads((data / SERVER_FILE).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_ready(url: str) -> bool:
    """Whether the server at `url` says that it can work; it may not have started yet."""
    try:
        return httpx.get(f"{url}/readyz", timeout=_LOOK_SECONDS, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _checked_url(url: str) -> str:
    """The server's root: no trailing slash, no `/v1`."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ApiError(f"{url!r} is not an address: write it as http://host:port ({URL_VARIABLE})")
    return url.strip().rstrip("/").removesuffix("/v1")


def _checked_key(key: str | None) -> str:
    key = (key or "").strip()
    if not key:
        raise ApiError(
            f"No API key: set {KEY_VARIABLE} to the key that `luthier up` showed at its first start, or make "
            "one on the server with `luthier keys create --name NAME`"
        )
    if not (key.isascii() and key.isprintable()):
        raise ApiError(f"{KEY_VARIABLE} holds characters that no key has: copy the key again")
    return key


def _unreachable(url: str, error: httpx.TransportError) -> ApiError:
    reason = str(error) or type(error).__name__
    return ApiError(f"{url} does not answer ({reason}). Is the server running? `luthier up` starts one here")


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        body = response.json()["error"]
        message, code, param = str(body["message"]), body.get("code"), body.get("param")
        details = [each for each in body.get("details") or () if isinstance(each, dict)]
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, param = f"HTTP {response.status_code} from something that is not Luthier", None, None
        details = []
    raise ApiError(
        message,
        status=response.status_code,
        code=code,
        param=param,
        request_id=response.headers.get("x-request-id"),
        retry_after_seconds=_seconds(response.headers.get("retry-after")),
        details=details,
    )


def _seconds(text: str | None) -> float | None:
    """A `Retry-After` in seconds; its form as a date is taken as absent."""
    return float(text) if text is not None and text.isdecimal() else None
