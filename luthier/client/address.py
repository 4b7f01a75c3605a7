"""Which server is called and with which key: arguments, the environment, a profile, and what runs here.

In this order; a profile is a named pair in a file of the user's (`luthier.client.profiles`). The address of
the server that `luthier up` runs on this machine comes last, from its data folder.
"""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from luthier.client.errors import SetupError
from luthier.client.profiles import Profile, current_profile
from luthier.settings import Settings

SERVER_FILE = "server.json"
URL_VARIABLE, KEY_VARIABLE = "LUTHIER_URL", "LUTHIER_API_KEY"
_LOOK_SECONDS = 2.0


def find_address(profile: Profile | None = None) -> str:
    """The server's address: LUTHIER_URL, else the profile's, else what `luthier up` wrote.

    Args:
        profile: default: the current one.
    Raises:
        SetupError: there is none.
    """
    profile = profile or current_profile()
    data = Settings().data
    if url := os.environ.get(URL_VARIABLE) or profile.url or saved_address(data):
        return url
    raise SetupError(
        f"No server is known: set {URL_VARIABLE} to its address, or `luthier config set url ADDRESS`, or "
        f"start one with `luthier up` (it writes {data / SERVER_FILE})"
    )


def find_key(profile: Profile | None = None) -> str | None:
    """LUTHIER_API_KEY, else the profile's key; None where there is none."""
    return os.environ.get(KEY_VARIABLE) or (profile or current_profile()).api_key


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
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
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
