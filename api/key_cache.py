"""Keys that were let in a moment ago: the database is asked about each once a second, not at every request.

So a key that is revoked, has expired or was given other scopes is known for what it is within a second, in
every process. What was refused is not remembered.
"""

import hashlib
import time
from typing import NamedTuple

from luthier.service.access import Grant

FRESH_SECONDS = 1.0
_MOST_KEYS = 10_000


class Presented(NamedTuple):
    """What a request says of who sends it: its key, and the organisation and project that it names."""

    key: str | None
    organization: str | None
    project: str | None


class KeyCache:
    """Grants by what was presented for them, which is kept as a hash. For one event loop."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[float, Grant]] = {}

    def find(self, presented: Presented) -> Grant | None:
        """What was found less than a second ago."""
        kept = self._kept.get(_digest(presented))
        return kept[1] if kept and time.monotonic() - kept[0] < FRESH_SECONDS else None

    def has_known(self, presented: Presented) -> bool:
        """Whether it was let in at some time, as far as that is remembered."""
        return _digest(presented) in self._kept

    def keep(self, presented: Presented, asked_at: float, grant: Grant) -> None:
        """Remember a grant.

        Args:
            asked_at: monotonic time at which the database was about to be asked.
        """
        if len(self._kept) >= _MOST_KEYS:
            self._kept.clear()
        self._kept[_digest(presented)] = (asked_at, grant)


def _digest(presented: Presented) -> bytes:
    return hashlib.sha256("\n".join(part or "" for part in presented).encode()).digest()
