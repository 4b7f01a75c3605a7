"""Identifiers: a prefix that tells the kind, and 24 random characters that nobody can guess.

OpenAI's older kinds have a hyphen behind the prefix, its newer ones an underscore, as in `whep_`.
"""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 24


def new_id(prefix: str) -> str:
    """A fresh identifier such as `ftjob-4Xq…`; 143 random bits."""
    head = prefix if prefix.endswith("_") else f"{prefix}-"
    return head + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
