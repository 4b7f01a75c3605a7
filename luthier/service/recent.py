"""Rows of all projects that every request asks for, read once a second by each process.

For estimates, and where only one of two answers may be a second old.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy.orm import Session

Read = TypeVar("Read")
_FRESH_SECONDS = 1.0


class Recent(Generic[Read]):
    """The last answer to one question, for each database.

    Args:
        read: asks the database; its answer is shared by threads.
    """

    def __init__(self, read: Callable[[Session, datetime], Read]) -> None:
        self._read = read
        self._known: WeakKeyDictionary[object, tuple[float, Read]] = WeakKeyDictionary()

    def get(self, session: Session, now: datetime) -> Read:
        """What was read within the last second, else what is read now."""
        engine, asked_at = session.get_bind(), time.monotonic()
        read_at, answer = self._known.get(engine, (0.0, None))
        if answer is None or asked_at - read_at >= _FRESH_SECONDS:
            answer = self._read(session, now)
            self._known[engine] = (asked_at, answer)
        return answer
