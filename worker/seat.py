"""The leader's seat, as one dispatcher process sees it; the threads of the process share it.

One thread keeps the seat; all of them write through `transaction`, which is fenced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import structlog
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.installation import Installation
from luthier.service import leadership
from luthier.service.leadership import Leadership, LeadershipLostError

log = structlog.get_logger()
# Another dispatcher waits no longer than this for one that was killed.
_LONGEST_LEASE_SECONDS = 30.0
_RENEWALS_PER_LEASE = 3


class Seat:
    """Becomes the leader's, stays it, and loses it.

    Args:
        holder: names this process in the leader row.
    """

    def __init__(self, installation: Installation, holder: str) -> None:
        self._database, self.holder = installation.database, holder
        self.lease_seconds = min(_LONGEST_LEASE_SECONDS, installation.settings.lease_seconds)
        self._leadership: Leadership | None = None
        self._renew_at = 0.0

    @property
    def is_taken(self) -> bool:
        """Whether this process led when it last looked."""
        return self._leadership is not None

    def keep(self, monotonic: float) -> bool:
        """Lead, if nobody else does; returns whether that began just now.

        The row is written at a third of its lease; in between nothing is asked of the database.
        """
        if self._leadership is not None and monotonic < self._renew_at:
            return False
        before = self._leadership
        with self._database.reading() as session:
            is_free = leadership.may_lead(session, self.holder, now=clock(session))
        if is_free:
            with self._database.transaction() as session:
                now = clock(session)
                self._leadership = leadership.lead(
                    session, self.holder, lease_seconds=self.lease_seconds, now=now
                )
        else:
            self._leadership = None
        self._renew_at = monotonic + self.lease_seconds / _RENEWALS_PER_LEASE
        if self._leadership is None:
            if before is not None:
                log.warning("leadership_lost", holder=self.holder)
            return False
        return self._leadership != before

    def leave(self) -> None:
        """Let another dispatcher lead at once."""
        held, self._leadership = self._leadership, None
        if held is not None:
            with self._database.transaction() as session:
                leadership.resign(session, held)

    @contextmanager
    def transaction(self) -> Iterator[tuple[Session, datetime]]:
        """A transaction that stands only if this process leads until its end, and the database's time.

        Raises:
            LeadershipLostError: it does not lead; the block is not entered.
        """
        with self._database.transaction() as session:
            now = clock(session)
            try:
                leadership.confirm(session, self._held(), lease_seconds=self.lease_seconds, now=now)
            except LeadershipLostError:
                self._renew_at = 0.0
                raise
            yield session, now

    def stands(self, session: Session, *, now: datetime) -> bool:
        """Whether this process leads at this moment."""
        held = self._leadership
        return held is not None and leadership.stands(session, held, now=now)

    def _held(self) -> Leadership:
        held = self._leadership
        if held is None:
            raise LeadershipLostError(self.holder)
        return held
