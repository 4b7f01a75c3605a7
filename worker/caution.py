"""When lost leases may be taken back: not while they only look lost.

After the database was away every lease has run out, though every worker lives: for one lease they get the
time to renew. And many leases lost at once are looked at twice, one lease apart, before they are believed;
a switch that fails, or a clock that jumps, takes many, and a worker that dies takes few.
"""

from collections.abc import Collection

Lost = tuple[str, int]
"""A lease that ran out: job and epoch."""

_FEW = 3
_FEW_RATIO = 0.3


class Caution:
    """What one dispatcher remembers of lost leases. Times are of one monotonic clock, in seconds."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._quiet_until: float | None = None
        self._first_seen: dict[Lost, float] = {}

    def alarm(self) -> None:
        """What was seen of leases is worth nothing: believe none of it for one lease, from the next look."""
        self._quiet_until = None
        self._first_seen.clear()

    def is_quiet(self, monotonic: float) -> bool:
        """Whether nothing may be taken back now."""
        if self._quiet_until is None:
            self._quiet_until = monotonic + self._lease_seconds
        return monotonic < self._quiet_until

    def believes(self, lost: Collection[Lost], leased_count: int, monotonic: float) -> bool:
        """Whether leases that look lost are: those seen a lease ago, and a few new ones beside them."""
        self._first_seen = {lease: self._first_seen.get(lease, monotonic) for lease in lost}
        new = sum(monotonic - seen < self._lease_seconds for seen in self._first_seen.values())
        return new <= max(_FEW, int(_FEW_RATIO * leased_count))
