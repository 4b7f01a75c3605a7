"""Identifiers: a prefix that tells the kind, and 24 random characters that nobody can guess.

OpenAI's older kinds have a hyphen behind the prefix, its newer ones an underscore, as in `whep_`.
"""

import secrets
from base64 import b64encode

_LENGTH = 24
_DRAWN_BYTES = 36


def new_id(prefix: str) -> str:
    """A fresh identifier such as `ftjob-4Xq…`; 143 random bits."""
    head = prefix if prefix.endswith("_") else f"{prefix}-"
    return head + _letters_and_digits()


def _letters_and_digits() -> str:
    """Drawn at once, since every request has an id: of base 64 all but its two signs, each as likely."""
    while True:
        drawn = b64encode(secrets.token_bytes(_DRAWN_BYTES)).translate(None, b"+/")
        if len(drawn) >= _LENGTH:
            return drawn[:_LENGTH].decode()
