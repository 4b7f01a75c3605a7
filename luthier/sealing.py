"""Secrets at rest, sealed under a key derived from the installation's own: the database alone tells nothing.

AES-256-GCM with a fresh nonce, HKDF-SHA256 for the key (RFC 5869). What a text was sealed for is bound to it:
it cannot be opened for anything else, so one secret's row cannot be copied over another's.
"""

import base64
import binascii
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION = "v1."
_NONCE_BYTES = 12


class SealError(Exception):
    """A sealed text cannot be opened: it is damaged, or was sealed under another key or for another thing."""


def seal(plain: str, installation_key: bytes, *, purpose: str) -> str:
    """`plain` as text that may be stored.

    Args:
        purpose: names the one thing that it is stored for, such as `webhook/whep_123`.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = _cipher(installation_key).encrypt(nonce, plain.encode(), purpose.encode())
    return _VERSION + base64.urlsafe_b64encode(nonce + sealed).decode("ascii")


def unseal(text: str, installation_key: bytes, *, purpose: str) -> str:
    """What was sealed.

    Raises:
        SealError: it cannot be opened with this key for this purpose.
    """
    try:
        if not text.startswith(_VERSION):
            raise SealError("a sealed secret has an unknown form")
        raw = base64.b64decode(text.removeprefix(_VERSION), altchars=b"-_", validate=True)
        opened = _cipher(installation_key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], purpose.encode())
    except (InvalidTag, binascii.Error, ValueError) as error:
        raise SealError(f"the secret of {purpose} was sealed under another key, or is damaged") from error
    return opened.decode()


def _cipher(installation_key: bytes) -> AESGCM:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"luthier sealing v1")
    return AESGCM(derived.derive(installation_key))
