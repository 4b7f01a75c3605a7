"""Keys that were refused, counted by the address that showed them: who guesses is soon not listened to.

A made-up key whose checksum is right costs a look into the database. Keys that have been let in before are
looked up whatever else comes from their address, so that a guesser shuts out nobody but new ones beside it.
"""

import ipaddress
import time

from luthier.errors import LuthierError

_MINUTE_SECONDS = 60.0
_MOST_ADDRESSES = 10_000
# One customer's network, in which an address is anybody's choice.
_IPV6_PREFIX = 64


class RefusedKeys:
    """The counts of one process. For one event loop.

    Args:
        per_minute: how many an address may show; 0 for any number.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._counts: dict[str, tuple[float, int]] = {}

    def require_few(self, address: str | None) -> None:
        """Let a key be looked up.

        Raises:
            LuthierError: `rate_limit_exceeded`.
        """
        began_at, count = self._of(address)
        if self._per_minute and count >= self._per_minute:
            raise LuthierError(
                f"Too many API keys from this address were wrong: {count} within a minute",
                "rate_limit_exceeded",
                retry_after_seconds=max(1, round(began_at + _MINUTE_SECONDS - time.monotonic())),
            )

    def count(self, address: str | None) -> None:
        """One more was refused."""
        if len(self._counts) >= _MOST_ADDRESSES:
            self._counts.clear()
        began_at, count = self._of(address)
        self._counts[_network_of(address)] = (began_at, count + 1)

    def _of(self, address: str | None) -> tuple[float, int]:
        now = time.monotonic()
        began_at, count = self._counts.get(_network_of(address), (now, 0))
        return (began_at, count) if now - began_at < _MINUTE_SECONDS else (now, 0)


def _network_of(address: str | None) -> str:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
