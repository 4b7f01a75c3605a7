"""How many requests a key may send in a minute of the wall clock, over all processes of the API.

Each process counts for itself, and once a second tells the database what it has counted and hears what all
have: `Requests.share`. So a limit is exact with one process; with several, those that a burst reaches within
one second may each let it pass up to the limit, once a minute at worst.
"""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from api.key_cache import FRESH_SECONDS
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.service import request_counts
from luthier.service.access import Grant

_MINUTE_SECONDS = 60


@dataclass
class _Count:
    """Requests of a key in a minute.

    Attributes:
        told: by all processes.
        own: of this one, not told yet.
        telling: of this one, on their way into the database; None while nobody asks it.
    """

    minute: int
    told: int = 0
    own: int = 0
    telling: int | None = None
    told_at: float = -math.inf

    @property
    def total(self) -> int:
        return self.told + self.own + (self.telling or 0)


@dataclass(frozen=True)
class Allowance:
    """What is left of a key's minute, after this request."""

    limit: int
    remaining: int
    reset_seconds: int
    is_spent: bool

    @property
    def headers(self) -> Mapping[str, str]:
        """In OpenAI's words, and in those of draft-ietf-httpapi-ratelimit-headers."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_seconds}s",
            "RateLimit-Policy": f'"default";q={self.limit};w={_MINUTE_SECONDS}',
            "RateLimit": f'"default";r={self.remaining};t={self.reset_seconds}',
        }

    def require(self) -> None:
        """Let the request pass.

        Raises:
            LuthierError: `rate_limit_exceeded`.
        """
        if self.is_spent:
            raise LuthierError(
                f"The API key has sent {self.limit} requests in this minute, which is its limit: wait "
                f"{self.reset_seconds} s",
                "rate_limit_exceeded",
                retry_after_seconds=self.reset_seconds,
            )


@dataclass
class Requests:
    """The counts of one process.

    Args:
        default: limit of keys that have none of their own; None for none.
        share_every_seconds: the database is asked about a key no more often.
    """

    default: int | None
    share_every_seconds: float = FRESH_SECONDS
    _counts: dict[str, _Count] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def limit_of(self, grant: Grant) -> int | None:
        """Requests a minute; None without a limit."""
        own = grant.requests_per_minute
        return (self.default if own is None else own) or None

    def count(self, grant: Grant) -> Allowance | None:
        """Count a request, unless the minute is spent; None for a key without a limit."""
        limit = self.limit_of(grant)
        if limit is None:
            return None
        minute, second = divmod(time.time(), _MINUTE_SECONDS)
        with self._lock:
            count = self._of(grant.caller.api_key_id, int(minute))
            is_spent = count.total >= limit
            count.own += not is_spent
            remaining = max(0, limit - count.total)
        return Allowance(limit, remaining, max(1, round(_MINUTE_SECONDS - second)), is_spent)

    def share(self, database: Database, grant: Grant) -> None:
        """Tell what this process has counted of a key, and hear what all have; one thread at a time does."""
        minute = int(time.time() // _MINUTE_SECONDS)
        key_id = grant.caller.api_key_id
        with self._lock:
            count = self._of(key_id, minute)
            if count.telling is not None or time.monotonic() - count.told_at < self.share_every_seconds:
                return
            count.own, count.telling, count.told_at = 0, count.own, time.monotonic()
        told = None
        try:
            told = _told(database, grant, minute, count.telling)
        finally:
            with self._lock:
                if told is None:
                    count.own += count.telling
                else:
                    count.told = told
                count.telling = None

    def _of(self, key_id: str, minute: int) -> _Count:
        count = self._counts.get(key_id)
        if count is None or count.minute != minute:
            count = self._counts[key_id] = _Count(minute)
        return count


def _told(database: Database, grant: Grant, minute: int, own: int) -> int:
    if not own:
        with database.reading() as session:
            return request_counts.find(session, grant.caller.api_key_id, minute=minute)
    with database.transaction() as session:
        return request_counts.add(session, grant.caller, minute=minute, count=own)
