"""Addresses that the service may call on behalf of users: public ones, and those that an installation allows.

`parse_url` checks a URL by its text, `resolve` every address that its host leads to. Whoever calls the URL
connects to an address that `resolve` gave and to no other, since names may lead elsewhere the next time they
are asked for. Python's own `is_private` and `is_global` miss some ranges, hence the lists. Messages tell no
address: where a name leads inside of a network is not for everybody.
"""

import ipaddress
import re
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from luthier.errors import LuthierError, invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_LENGTH = 2048
_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_NEVER_IN_A_URL = frozenset(' "<>\\^`{|}#')


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# What `all` stands for. Link-local addresses are not among it: cloud machines find their credentials there.
_PRIVATE = _networks(
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "::1/128", "fc00::/7"
)
# IANA's special-purpose registries: https://www.iana.org/assignments/iana-ipv4-special-registry
_NOT_PUBLIC = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    # Of 2000::/3, which is all of IPv6 that is public.
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
)
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")


@dataclass(frozen=True)
class AddressRules:
    """What an installation allows.

    Attributes:
        networks: that may be called though they are not public, at any port and without TLS.
        ports: of public addresses.
    """

    networks: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset({443, 8443})

    @classmethod
    def parse(cls, networks: str, ports: str) -> Self:
        """Rules from settings: networks as CIDRs with commas, or `all` for the private ones.

        Raises:
            ValueError: one of them is none.
        """
        named = _split(networks)
        others = _networks(*(text for text in named if text != "all"))
        return cls(
            others + (_PRIVATE if "all" in named else ()), frozenset(int(text) for text in _split(ports))
        )

    def allow(self, address: Address) -> bool:
        """Whether an address is in one of the networks that are named."""
        return any(address in network for network in self.networks)


@dataclass(frozen=True)
class Target:
    """Where a URL leads by its text."""

    scheme: str
    host: str
    port: int


def parse_url(url: str, param: str = "url") -> Target:
    """The target of a URL of a user.

    Raises:
        LuthierError: it is none that the service would call; the message does not repeat it.
    """
    if len(url) > MAX_URL_LENGTH:
        raise _refused(f"it has more than {MAX_URL_LENGTH} characters", param)
    if not (url.isascii() and url.isprintable()) or not _NEVER_IN_A_URL.isdisjoint(url):
        raise _refused("it holds characters that stand in no URL, or a fragment; write them as %XX", param)
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:
        raise _refused("its host or port cannot be read", param) from error
    if scheme not in _PORTS:
        raise _refused("write it as https://host/path", param)
    if "@" in parts.netloc:
        raise _refused("it holds a user's name or password: check the signature instead", param)
    if not (_is_ipv6(host) if ":" in host else _HOST.fullmatch(host)):
        raise _refused("its host is neither a name nor an address", param)
    return Target(scheme, host, _PORTS[scheme] if port is None else port)


def resolve(target: Target, rules: AddressRules, param: str = "url") -> Sequence[str]:
    """All addresses of a target, each of which may be called. It asks the resolver, which takes its time.

    Raises:
        LuthierError: there is none, or one that may not be called.
    """
    addresses = _addresses_of(target, param)
    for address in addresses:
        _check(target, address, rules, param)
    return [str(address) for address in addresses]


def start_resolving(target: Target, rules: AddressRules) -> Future[Sequence[str]]:
    """`resolve` in a thread of its own: a resolver may hang, and nobody waits for that, a stop neither."""
    found: Future[Sequence[str]] = Future()

    def run() -> None:
        if found.set_running_or_notify_cancel():
            try:
                found.set_result(resolve(target, rules))
            except BaseException as error:  # noqa: BLE001, whoever waits for it raises it
                found.set_exception(error)

    threading.Thread(target=run, daemon=True, name="resolver").start()
    return found


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def _addresses_of(target: Target, param: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    # A name with an empty or endless part cannot even be asked for.
    except (OSError, UnicodeError) as error:
        raise _refused("its host is not known to the resolver", param) from error
    addresses = (ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return list(dict.fromkeys(_plain(address) for address in addresses))


def _check(target: Target, address: Address, rules: AddressRules, param: str) -> None:
    if rules.allow(address):
        return
    if not is_public(address):
        raise _refused(
            "its host leads to an address that is not public; the operator can allow a network with "
            "LUTHIER_WEBHOOK_ALLOW_PRIVATE",
            param,
        )
    if target.scheme != "https":
        raise _refused("over the internet only https is called", param)
    if target.port not in rules.ports:
        allowed = ", ".join(str(port) for port in sorted(rules.ports))
        raise _refused(f"port {target.port} is not among those that may be called: {allowed}", param)


def _plain(address: Address) -> Address:
    """An IPv4 address in the clothes of IPv6 as what it is."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _refused(reason: str, param: str) -> LuthierError:
    return invalid(f"Invalid value for '{param}': {reason}.", param)
