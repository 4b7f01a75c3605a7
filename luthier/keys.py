"""API keys: `lk_<8 characters, shown>_<43 characters, secret><6 characters of CRC32>`.

The prefix and the checksum let scanners find leaked keys and let malformed ones fail without a look-up. The
secret part has 256 random bits, so one HMAC-SHA256 under the installation's own key is enough to store.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass

_ALPHABET = string.digits + string.ascii_letters
_SHAPE = re.compile(r"lk_([0-9A-Za-z]{8})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")
_SECRET_BITS = 256
# How long a key may stay good beside the one that takes its place.
MAX_GRACE_HOURS = 30 * 24


@dataclass(frozen=True)
class Key:
    """A key in full. `text` is what the user holds; it is shown once and never stored."""

    prefix: str
    text: str


def new_key() -> Key:
    """A fresh key."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = _base62(secrets.randbits(_SECRET_BITS), 43)
    return Key(prefix, f"lk_{prefix}_{secret}{_checksum(prefix, secret)}")


def parse_key(text: str) -> Key | None:
    """The key that `text` is, or None where shape or checksum do not fit."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        return None
    prefix, secret, checksum = match.groups()
    if not hmac.compare_digest(checksum, _checksum(prefix, secret)):
        return None
    return Key(prefix, text)


def key_hash(key: Key, installation_key: bytes) -> str:
    """What is stored of a key: hex HMAC-SHA256."""
    return hmac.new(installation_key, key.text.encode(), hashlib.sha256).hexdigest()


def _checksum(prefix: str, secret: str) -> str:
    return _base62(zlib.crc32(f"lk_{prefix}_{secret}".encode()), 6)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
