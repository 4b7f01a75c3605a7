"""What a check has found: good, worth knowing, or broken with the way to mend it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` says what to do, and is there for all that is not `ok`."""

    check: str
    status: Literal["ok", "warning", "failed"]
    message: str
    remedy: str | None = None


def ok(check: str, message: str) -> Finding:
    return Finding(check, "ok", message)


def warning(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, "warning", message, remedy)


def failed(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, "failed", message, remedy)
