"""Identifiers: a prefix that tells the kind, and 24 random characters that nobody can guess."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 24


def new_id(prefix: str) -> str:
    """A fresh identifier such as `ftjob-4Xq…`; 143 random bits."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
