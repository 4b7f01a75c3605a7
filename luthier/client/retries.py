"""When a call is sent again, and after which pause; the same for every client.

A server's word goes first: `x-should-retry`, then `Retry-After`. Else calls that may come twice are repeated
after a pause that doubles, less a random part of it, so that clients which lost one server do not come back
together. A new job may come twice, since it carries an `Idempotency-Key`. What was refused for coming too
often (429) was not done, and any call may come again.
"""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from luthier.client.errors import ApiError, UnreachableError
from luthier.client.steps import Pause, T

OnOutage = Callable[[ApiError], None]

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _JITTER_RATIO = 0.5, 30.0, 0.25
# A server that wants more than that is not waited for: whoever called may have better to do.
_LONGEST_ASKED_SECONDS = 60.0
_TOO_MANY = 429
_PASSING = frozenset({408, _TOO_MANY, 500, 502, 503, 504})
# A server that starts again, or a proxy that waits for it: some minutes of short pauses.
_AWAY, _OUTAGE_RETRIES, _OUTAGE_PAUSE_SECONDS = frozenset({502, 503}), 60, 5.0
# Waiting is then the caller's choice: room comes when a job ends or something is deleted.
_QUOTA = "quota_exceeded"


@dataclass(frozen=True)
class Policy:
    """How often a call is sent again.

    Attributes:
        max_retries: 0 sends everything once.
        outage_retries: how often, where a server is away that has answered before.
        on_outage: called once in each outage that outlives the first retry.
    """

    max_retries: int = 3
    outage_retries: int = 0
    on_outage: OnOutage | None = None

    def patient(self, on_outage: OnOutage | None) -> "Policy":
        """The same for who follows something for hours: the server may start anew meanwhile."""
        retries = _OUTAGE_RETRIES if self.max_retries else 0
        return replace(self, outage_retries=retries, on_outage=on_outage)

    def repeated(
        self,
        attempt: Callable[[], Generator[Any, Any, T]],
        *,
        is_repeatable: bool,
        progress: Callable[[], int] = lambda: 0,
    ) -> Generator[Any, Any, T]:
        """The result of the first attempt that succeeds; steps, or a flow's where the attempts are flows.

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
                is_outage = bool(self.outage_retries and before) and _is_away(error)
                wait = self._wait_seconds(error, failures, is_repeatable=is_repeatable, is_outage=is_outage)
                if wait is None:
                    raise
                if is_outage and failures == 1 and self.on_outage is not None:
                    self.on_outage(error)
            failures += 1
            yield Pause(wait)

    def _wait_seconds(
        self, error: ApiError, failures: int, *, is_repeatable: bool, is_outage: bool
    ) -> float | None:
        """The pause before the next attempt; None where this was the last one."""
        most = self.outage_retries if is_outage else self.max_retries
        if failures >= most or error.code == _QUOTA or error.should_retry is False:
            return None
        is_passing = isinstance(error, UnreachableError) or error.status in _PASSING
        may_come_again = is_repeatable or error.status == _TOO_MANY
        if not (error.should_retry or (may_come_again and is_passing)):
            return None
        asked = error.retry_after_seconds
        if asked is not None:
            return asked if asked <= _LONGEST_ASKED_SECONDS else None
        longest = _OUTAGE_PAUSE_SECONDS if is_outage else _LONGEST_PAUSE_SECONDS
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 10), longest)
        return pause * (1 - _JITTER_RATIO * random.random())


def _is_away(error: ApiError) -> bool:
    return isinstance(error, UnreachableError) or error.status in _AWAY
