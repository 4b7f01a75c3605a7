"""Which server is called and with which key: arguments, the environment, a profile, and what runs here.

In this order; a profile is a named pair in a file of the user's (`luthier.client.profiles`), and one that is
named for a call goes before the environment. The address of the server that `luthier up` runs on this machine
comes last, from its data folder. A key that stands beside an address is sent nowhere else.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from luthier.client.errors import SetupError
from luthier.client.profiles import current_profile, is_named
from luthier.settings import Settings

SERVER_FILE = "server.json"
URL_VARIABLE, KEY_VARIABLE = "LUTHIER_URL", "LUTHIER_API_KEY"
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class _Source:
    """Where an address and a key are told together: then the key is for that server and no other."""

    name: str
    url: str | None
    key: str | None
    needs_url: bool = False

    def has_key_for(self, url: str | None) -> bool:
        if self.url is None:
            return not self.needs_url
        return url is None or checked_url(self.url) == url


def find_address(profile: str | None = None) -> str:
    """The server's address: of the profile that is named, LUTHIER_URL, of the one in use, or what runs here.

    Args:
        profile: its name; LUTHIER_PROFILE names one, too.
    Raises:
        SetupError: there is none.
    """
    if url := known_address(profile):
        return url
    raise SetupError(
        f"No server is known: set {URL_VARIABLE} to its address, or `luthier config set url ADDRESS`, or "
        f"start one with `luthier up` (it writes {Settings().data / SERVER_FILE})"
    )


def known_address(profile: str | None = None) -> str | None:
    """The same; None where there is none."""
    told = [source.url for source in _sources(profile, None)]
    return next((url for url in told if url), None) or saved_address(Settings().data)


def find_key(url: str | None, profile: str | None = None) -> str | None:
    """The key for a server, from the same sources; None where none has a key.

    Args:
        url: None for any.
    Raises:
        SetupError: there is none but for another server.
    """
    kept = [source for source in _sources(profile, saved_address(Settings().data)) if source.key]
    for source in kept:
        if source.has_key_for(url):
            return source.key
    if not kept:
        return None
    raise SetupError(
        f"No API key for {url}: {kept[0].name} has one, but for {kept[0].url or 'another server'}. Set "
        f"{KEY_VARIABLE} to the key of this server"
    )


def _sources(profile_name: str | None, local_url: str | None) -> tuple[_Source, _Source]:
    """The environment and the profile, the one that goes first in front.

    Args:
        local_url: for which a key without an address is kept.
    """
    profile = current_profile(profile_name)
    environment = _Source(
        "the environment", os.environ.get(URL_VARIABLE) or None, os.environ.get(KEY_VARIABLE) or None
    )
    kept = _Source("the profile", profile.url or local_url, profile.api_key, needs_url=True)
    return (kept, environment) if is_named(profile_name) else (environment, kept)


def saved_address(data: Path) -> str | None:
    """The address of the server that runs on a data folder of this machine; None where none does."""
    try:
        return str(json.loads((data / SERVER_FILE).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_ready(url: str) -> bool:
    """Whether the server at `url` says that it can work; it may not have started yet."""
    try:
        return httpx.get(f"{url}/readyz", timeout=_LOOK_SECONDS, trust_env=False).is_success
    except httpx.TransportError:
        return False


def checked_url(url: str) -> str:
    """The server's root: no trailing slash, no `/v1`.

    Raises:
        SetupError: it is no address.
    """
    try:
        parts = urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # Of an address in brackets, or a port.
        is_address = False
    if not is_address:
        raise SetupError(f"{url!r} is not an address: write it as http://host:port ({URL_VARIABLE})")
    return url.strip().rstrip("/").removesuffix("/v1")


def checked_key(key: str | None) -> str:
    """The key without what surrounds it.

    Raises:
        SetupError: there is none, or it is damaged.
    """
    key = (key or "").strip()
    if not key:
        raise SetupError(
            f"No API key: set {KEY_VARIABLE} to the key that `luthier up` showed at its first start, or give "
            "it to `luthier config set api_key`; `luthier keys create --name NAME` makes one on the server"
        )
    if not (key.isascii() and key.isprintable()):
        raise SetupError(f"{KEY_VARIABLE} holds characters that no key has: copy the key again")
    return key
