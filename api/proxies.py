"""Behind a proxy: who really asked, by which scheme and name, as the proxies say that are trusted.

The path of the public URL is the root path, whether or not a proxy cuts it off.
Headers of anybody else change nothing. Of a chain of proxies, each adds the address that it was called from
at the right, so the rightmost one that is no trusted proxy is the client; what stands left of it, anybody may
have written.
"""

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

_FOR, _PROTO, _HOST = "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"
_HEADERS = (_FOR, _PROTO, _HOST, "forwarded")
_SCHEMES = frozenset({"http", "https"})

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


class Proxies:
    """ASGI middleware that puts the client, the scheme, the host and the root path in place."""

    def __init__(self, app: ASGIApp, networks: Sequence[Network], root_path: str = "") -> None:
        self._app, self._networks, self._root_path = app, networks, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._networks and self._trusts(_peer_of(scope)):
                scope = self._told_by_proxy(scope)
            if self._root_path:
                scope = {**scope, "root_path": self._root_path}
        await self._app(scope, receive, send)

    def _told_by_proxy(self, scope: Scope) -> Scope:
        headers = Headers(scope=scope)
        told = {**scope, "headers": [pair for pair in scope["headers"] if pair[0].decode() not in _HEADERS]}
        if (client := self._client(headers)) is not None:
            told["client"] = (str(client), 0)
        # The last proxy saw it with its own eyes.
        if (scheme := _last(headers, _PROTO)) in _SCHEMES:
            told["scheme"] = scheme
        if host := _last(headers, _HOST):
            MutableHeaders(scope=told)["host"] = host
        return told

    def _client(self, headers: Headers) -> Address | None:
        client = None
        for text in reversed(_parts(headers, _FOR)):
            address = _address_of(text)
            if address is None:
                break
            client = address
            if not self._trusts(address):
                break
        return client

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(
            address.version == network.version and address in network for network in self._networks
        )


def was_forwarded(request: Request) -> bool:
    """Whether a proxy says that it asks for somebody else, and is not trusted to say for whom."""
    return any(name in request.headers for name in _HEADERS)


def _peer_of(scope: Scope) -> Address | None:
    return _address_of(scope["client"][0]) if scope.get("client") else None


def _address_of(text: str) -> Address | None:
    """An address, also with brackets or a port as proxies write it; one of IPv4 in IPv6 as what it is."""
    bare = text.strip()
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _parts(headers: Headers, name: str) -> list[str]:
    return [part.strip() for line in headers.getlist(name) for part in line.split(",")]


def _last(headers: Headers, name: str) -> str:
    parts = _parts(headers, name)
    return parts[-1].lower() if parts else ""
