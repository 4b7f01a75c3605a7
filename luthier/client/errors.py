"""What a call raises: one error, with all that the server said, or that no server answered."""

import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import httpx


class ApiError(Exception):
    """A call that did not succeed.

    Attributes:
        message: what is wrong and what to change, in the server's words.
        status: HTTP status; None where no server answered.
        code, param: the server's error code and the field that it speaks of.
        details: all that is wrong where it is more than one thing, each with a `message`.
        request_id: finds the call in the server's log.
        retry_after_seconds: how long the server asks to wait.
        should_retry: whether the server says that the same call may succeed later; None where it is silent.
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
        should_retry: bool | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.details = details
        self.message, self.status, self.code, self.param = message, status, code, param
        self.request_id, self.retry_after_seconds = request_id, retry_after_seconds
        self.should_retry = should_retry


class UnreachableError(ApiError):
    """No server answered, or the connection broke."""


class SetupError(ApiError):
    """There is no address or no key to call with, or they cannot be used."""


def unreachable(url: str, error: httpx.TransportError) -> UnreachableError:
    """The error for a call that got no answer."""
    reason = str(error) or type(error).__name__
    return UnreachableError(
        f"{url} does not answer ({reason}). Is the server running? `luthier up` starts one here"
    )


def error_of(response: httpx.Response) -> ApiError:
    """The error that an answer tells; its body has been read."""
    try:
        body = response.json()["error"]
        message, code, param = str(body["message"]), body.get("code"), body.get("param")
        details = [each for each in body.get("details") or () if isinstance(each, dict)]
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, param = f"HTTP {response.status_code} from something that is not Luthier", None, None
        details = []
    return ApiError(
        message,
        status=response.status_code,
        code=code,
        param=param,
        request_id=response.headers.get("x-request-id"),
        retry_after_seconds=_asked_wait(response.headers),
        should_retry={"true": True, "false": False}.get(response.headers.get("x-should-retry", "")),
        details=details,
    )


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """The wait of `retry-after-ms`, else of `Retry-After` in seconds or as a date; None where neither is."""
    milliseconds, text = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if milliseconds.isdecimal():
        return float(milliseconds) / 1000
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
