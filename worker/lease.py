"""Keeps the lease of one run in the background, and learns what its owner wants.

A thread renews the lease every heartbeat and reads the wish in between. Another, which never touches the
database and so cannot be held up by it, is the fence: after too long without a renewal it declares the lease
lost by our own clock, before anybody else could have claimed the job, and ends the child.
"""

import random
import signal
import threading
import time
from types import TracebackType
from typing import Self

import structlog
from sqlalchemy.exc import DBAPIError

from luthier.database import Database, clock
from luthier.service import runs
from luthier.service.transitions import Lease, LeaseLostError
from luthier.settings import Settings
from luthier.status import DesiredState
from worker.child import Child

log = structlog.get_logger()
_JITTER = 0.2
# A renewal that hangs in a dead connection is not waited for; its thread ends with the process.
_JOIN_SECONDS = 2.0


class LeaseKeeper:
    """A context in which a lease is kept; leaving it stops the renewals, nothing else.

    Attributes:
        lost: set when the lease no longer stands.
        wish: what the owner wants, as last read.
        child: asked to end, and killed a while later, when the lease is lost.
    """

    def __init__(self, database: Database, lease: Lease, settings: Settings) -> None:
        self._database, self._lease, self._settings = database, lease, settings
        self.lost, self.wish = threading.Event(), DesiredState.RUN
        self.child: Child | None = None
        self._done = threading.Event()
        self._renewed_at = time.monotonic()
        self._renewing = threading.Thread(target=self._renew, name=f"lease {lease.job_id}", daemon=True)
        self._fencing = threading.Thread(target=self._fence, name=f"fence {lease.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._renewing.start()
        self._fencing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._fencing.join()
        self._renewing.join(_JOIN_SECONDS)

    def check(self) -> None:
        """Raise LeaseLostError when the lease is gone."""
        if self.lost.is_set():
            raise LeaseLostError(self._lease.job_id)

    def _renew(self) -> None:
        next_renewal = self._renewed_at + self._interval()
        while not self._done.wait(self._settings.watch_seconds) and not self.lost.is_set():
            asked_at = time.monotonic()
            try:
                self._look(renew=asked_at >= next_renewal)
            except LeaseLostError:
                self.lost.set()
            except DBAPIError:
                log.warning("database_unreachable", job_id=self._lease.job_id)
            else:
                if asked_at >= next_renewal:
                    self._renewed_at, next_renewal = asked_at, asked_at + self._interval()

    def _look(self, *, renew: bool) -> None:
        if renew:
            with self._database.transaction() as session:
                seconds = self._settings.lease_seconds
                self.wish = runs.heartbeat(session, self._lease, lease_seconds=seconds, now=clock(session))
        else:
            with self._database.reading() as session:
                self.wish = runs.desired_state(session, self._lease)

    def _fence(self) -> None:
        """Wait for the loss of the lease; then end the child, whatever else waits for the database."""
        while not self.lost.wait(self._settings.watch_seconds):
            if self._done.is_set():
                return
            if time.monotonic() - self._renewed_at > self._settings.self_fence_seconds:
                log.error("lease_given_up", job_id=self._lease.job_id)
                self.lost.set()
        if self.child is not None:
            self.child.signal(signal.SIGTERM)
            if not self._done.wait(self._fence_grace_seconds()):
                self.child.kill()

    def _fence_grace_seconds(self) -> float:
        """The child is gone well before the lease is anybody else's."""
        left = self._settings.lease_seconds - self._settings.self_fence_seconds
        return min(self._settings.cancel_grace_seconds, left / 2)

    def _interval(self) -> float:
        return self._settings.heartbeat_seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
