"""Identifiers: a prefix that tells the kind, and 24 random characters that nobody can guess."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 24


def new_id(prefix: str) -> str:
    """A fresh identifier such as `ftjob-4Xq…` or, of the prefix `upload_`, `upload_4Xq…`; 143 random bits."""
    separator = "" if prefix.endswith("_") else "-"
    return f"{prefix}{separator}" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
