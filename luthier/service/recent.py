"""What every request asks for and may be a second out of date: read once a second by each process.

For estimates, for sums that are far from their limit, and where only one of two answers may be old. One
thread reads at a time, while the others go by what they know; what takes long is read less often.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy.orm import Session

Read = TypeVar("Read")
_FRESH_SECONDS = 1.0
# Reading may take a twentieth of the time.
_FRESH_PER_READ = 20
_MOST_KEYS = 10_000


@dataclass
class _Known(Generic[Read]):
    answer: Read
    stale_at: float
    reading: Lock


class Recent(Generic[Read]):
    """The last answers to one question, for each database; they are shared by threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: WeakKeyDictionary[object, dict[Hashable, _Known[Read]]] = WeakKeyDictionary()

    def get(self, session: Session, read: Callable[[], Read], about: Hashable = None) -> Read:
        """What was read a moment ago, else what is read now.

        Args:
            about: where the question is asked of several things, the one that is meant.
        """
        of_database = self._known.setdefault(session.get_bind(), {})
        known = of_database.get(about)
        if known is not None and self._clock() < known.stale_at:
            return known.answer
        if known is not None and not known.reading.acquire(blocking=False):
            return known.answer
        try:
            asked_at = self._clock()
            answer = read()
            now = self._clock()
        finally:
            if known is not None:
                known.reading.release()
        stale_at = asked_at + max(_FRESH_SECONDS, _FRESH_PER_READ * (now - asked_at))
        if len(of_database) >= _MOST_KEYS:
            of_database.clear()
        of_database[about] = _Known(answer, stale_at, Lock())
        return answer
