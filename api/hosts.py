"""By which names the API lets itself be called.

A page elsewhere can have its own name lead here (DNS rebinding), and a browser then takes it for one of this
server's; so names that are not known are refused, before a key is looked at. Addresses pass where the API
listens on all of them, since no page can go by those without being here.
"""

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.errors import LuthierError, printable
from luthier.settings import Settings, is_everywhere, is_loopback, items

_ALL = "*"


class Hosts:
    """ASGI middleware that lets requests to a known host pass."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = {_bare(name) for name in (*items(settings.allowed_hosts), settings.host)}
        if settings.public_url is not None:
            self._names.add(urlsplit(settings.public_url).hostname or "")
        self._takes_addresses = is_everywhere(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(Headers(scope=scope).getlist("host"))
        await self._app(scope, receive, send)

    def _check(self, hosts: list[str]) -> None:
        # Without a name, nobody was led here by one.
        if not hosts:
            return
        name = _bare(hosts[0]) if len(hosts) == 1 else ""
        if not (_ALL in self._names or name in self._names or self._is_own(name)):
            shown = printable(", ".join(hosts))
            raise LuthierError(
                f"This server does not go by the name {shown!r}: set LUTHIER_PUBLIC_URL or add it to "
                "LUTHIER_ALLOWED_HOSTS",
                "host_not_allowed",
            )

    def _is_own(self, name: str) -> bool:
        """Whether a host is this machine, by the name or an address that are always its own."""
        if is_loopback(name):
            return True
        parent = name.partition(".")[2]
        return (self._takes_addresses and _is_address(name)) or (f"*.{parent}" in self._names)


@lru_cache(maxsize=64)
def _bare(host: str) -> str:
    """A host without its port, in small letters."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
