"""When a call is sent again, and after which pause; the same for every client.

A server's word goes first: `x-should-retry`, then `Retry-After`. Else calls that may come twice are repeated
after a pause that doubles, less a random part of it, so that clients which lost one server do not come back
together. A new job may come twice, since it carries an `Idempotency-Key`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from luthier.client.errors import ApiError, UnreachableError
from luthier.client.steps import Pause, Steps, T

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _JITTER_RATIO = 0.5, 30.0, 0.25
# A server that wants more than that is not waited for: whoever called may have better to do.
_LONGEST_ASKED_SECONDS = 60.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
# Waiting is then the caller's choice: room comes when a job ends or something is deleted.
_QUOTA = "quota_exceeded"


@dataclass(frozen=True)
class Policy:
    """How often a call is sent again.

    Attributes:
        max_retries: 0 sends everything once.
    """

    max_retries: int = 3

    def repeated(
        self,
        attempt: Callable[[], Steps[T]],
        *,
        is_repeatable: bool,
        progress: Callable[[], int] = lambda: 0,
    ) -> Steps[T]:
        """The result of the first attempt that succeeds.

        Args:
            progress: what attempts have in common so far; where it grows, counting starts anew.
        Raises:
            ApiError: of the last attempt.
        """
        failures, before = 0, progress()
        while True:
            try:
                return (yield from attempt())
            except ApiError as error:
                if progress() != before:
                    failures, before = 0, progress()
                wait = self._wait_seconds(error, failures, is_repeatable=is_repeatable)
                if wait is None:
                    raise
            failures += 1
            yield Pause(wait)

    def _wait_seconds(self, error: ApiError, failures: int, *, is_repeatable: bool) -> float | None:
        """The pause before the next attempt; None where this was the last one."""
        if failures >= self.max_retries or error.code == _QUOTA or error.should_retry is False:
            return None
        is_passing = isinstance(error, UnreachableError) or error.status in _PASSING
        if not (error.should_retry or (is_repeatable and is_passing)):
            return None
        asked = error.retry_after_seconds
        if asked is not None:
            return asked if asked <= _LONGEST_ASKED_SECONDS else None
        pause = min(_FIRST_PAUSE_SECONDS * 2.0**failures, _LONGEST_PAUSE_SECONDS)
        return pause * (1 - _JITTER_RATIO * random.random())
