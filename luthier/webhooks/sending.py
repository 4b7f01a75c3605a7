"""One message to one URL: the address is checked anew, and the connection goes to what was checked.

The request names the address and keeps the host in its `Host` header and in TLS, so that nothing resolves the
name a second time. Every message has a connection of its own: one that is kept for a host could serve another
host of the same address. Redirects are answers like others, no proxy is used, and nothing of an answer's body
is read: neither it nor its length is of use here, and a user could read there what only the server can reach.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache

import httpx

from luthier import __version__
from luthier.addresses import AddressRules, Target, parse_url, start_resolving
from luthier.errors import LuthierError
from luthier.webhooks.events import WebhookEvent
from luthier.webhooks.signatures import sign

# As httpx names addresses that do not take a connection.
_NOT_THERE = (httpx.ConnectError, httpx.ConnectTimeout)
_THROTTLED = frozenset({429, 502, 503, 504})
_MAX_ADDRESSES = 3
_MAX_REASON = 200

Resolving = Callable[[Target, AddressRules], Future[Sequence[str]]]


@dataclass(frozen=True)
class Answer:
    """How an attempt ended.

    Attributes:
        status_code: None where no answer came.
        error: why not; or what is wrong with an answer beside its status.
        retry_after_seconds: that a target which has too much to do asks for.
    """

    milliseconds: int
    status_code: int | None = None
    error: str | None = None
    retry_after_seconds: float | None = None

    @property
    def has_arrived(self) -> bool:
        return self.status_code is not None and httpx.codes.is_success(self.status_code)


async def send(
    url: str,
    event: WebhookEvent,
    secrets: Sequence[str],
    rules: AddressRules,
    *,
    timeout_seconds: float,
    now: datetime,
    start_resolving: Resolving = start_resolving,
) -> Answer:
    """Send one message; whatever goes wrong is the answer.

    Args:
        secrets: the newest first.
        timeout_seconds: for all of it, from the resolver to the status line.
        now: that the signature tells.
        start_resolving: may go on after the answer, where the resolver hangs.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await _post(url, event, secrets, start_resolving(parse_url(url), rules), now)
    except TimeoutError:
        return Answer(_since(started), error=f"no answer within {timeout_seconds:g} s")
    except LuthierError as error:
        return Answer(_since(started), error=error.message[:_MAX_REASON])
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Answer(_since(started), error=_reason(error))
    note = "redirects are not followed" if response.is_redirect else None
    retry_after = _retry_after(response, now) if response.status_code in _THROTTLED else None
    return Answer(_since(started), response.status_code, note, retry_after)


async def _post(
    url: str, event: WebhookEvent, secrets: Sequence[str], resolving: Future[Sequence[str]], now: datetime
) -> httpx.Response:
    target, named = parse_url(url), httpx.URL(url)
    addresses = await asyncio.wrap_future(resolving)
    timestamp, body = int(now.timestamp()), event.body()
    headers = {
        "Host": named.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "User-Agent": f"luthier/{__version__}",
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secrets, event.id, timestamp, body),
    }
    *first, last = addresses[:_MAX_ADDRESSES]
    for address in first:
        try:
            return await _call(named.copy_with(host=address), target.host, headers, body)
        except _NOT_THERE:
            continue
    return await _call(named.copy_with(host=last), target.host, headers, body)


async def _call(url: httpx.URL, host: str, headers: dict[str, str], body: bytes) -> httpx.Response:
    # The time for all of it is the caller's.
    client = httpx.AsyncClient(verify=_tls(), trust_env=False, timeout=httpx.Timeout(None, connect=5))
    extensions = {"sni_hostname": host}
    async with (
        client,
        client.stream("POST", url, headers=headers, content=body, extensions=extensions) as response,
    ):
        return response


@cache
def _tls() -> ssl.SSLContext:
    """Certificates that are trusted: certifi's, or those of SSL_CERT_FILE or SSL_CERT_DIR."""
    return httpx.create_ssl_context()


def _retry_after(response: httpx.Response, now: datetime) -> float | None:
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    """What went wrong with a connection, without what the other side has sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate cannot be trusted: {cause.verify_message}"[:_MAX_REASON]
        cause = cause.__cause__ or cause.__context__
    match error:
        case httpx.ConnectTimeout():
            return "no connection within 5 s"
        case httpx.ConnectError():
            return "the connection was refused, or TLS failed"
        case _:
            return f"the connection broke ({type(error).__name__})"


def _since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
