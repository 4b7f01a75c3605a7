"""Names of users' URLs, a few of which are asked for at once: a resolver that hangs holds up few calls."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from luthier.addresses import AddressRules, Target, parse_url, start_resolving
from luthier.errors import LuthierError, invalid
from luthier.installation import Installation

_PLACES = threading.BoundedSemaphore(8)


def check_url(installation: Installation, url: str) -> None:
    """Raises LuthierError where a URL may not be called, or nobody says in time where it leads."""
    settings = installation.settings
    asked = start_asking(parse_url(url), settings.webhook_rules)
    try:
        asked.result(settings.webhook_timeout_seconds)
    except TimeoutError as error:
        raise invalid(
            "Invalid value for 'url': the resolver does not know its host in time.", "url"
        ) from error


def start_asking(target: Target, rules: AddressRules) -> Future[Sequence[str]]:
    """`start_resolving`, while there are not too many who wait for that.

    Raises:
        LuthierError: `not_done_yet`.
    """
    places = _PLACES
    if not places.acquire(blocking=False):
        raise LuthierError("Too many names are being resolved now: try again", "not_done_yet")
    asked = start_resolving(target, rules)
    asked.add_done_callback(lambda _: places.release())
    return asked
