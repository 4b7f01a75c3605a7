"""Signatures of Standard Webhooks: HMAC-SHA256 over id, time and body, under a secret of the endpoint."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

_PREFIX = "whsec_"
_SECRET_BYTES = 32
_SHOWN = 4


def new_secret() -> str:
    """A fresh secret in the form that receivers are given."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")


def hint_of(secret: str) -> str:
    """What may be shown of a secret, so that two can be told apart."""
    return f"{_PREFIX}...{secret.rstrip('=')[-_SHOWN:]}"


def sign(keys: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each secret, the receiver takes any of them."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{_signature(key, signed)}" for key in keys)


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode("ascii")
