"""Keeps the lease of one run in the background, and learns what its owner wants.

A thread renews the lease every heartbeat and reads the wish in between. After too long without a renewal it
declares the lease lost by our own clock, before anybody else could have claimed the job.
"""

import random
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

log = structlog.get_logger()
_JITTER = 0.2


class LeaseKeeper:
    """A context in which a lease is kept; leaving it stops the renewals, nothing else.

    Attributes:
        lost: set when the lease no longer stands.
        cancel_wanted: set when the owner asked to cancel.
    """

    def __init__(self, database: Database, lease: Lease, settings: Settings) -> None:
        self._database, self._lease, self._settings = database, lease, settings
        self.lost, self.cancel_wanted = threading.Event(), threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {lease.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        """Raise LeaseLostError when the lease is gone."""
        if self.lost.is_set():
            raise LeaseLostError(self._lease.job_id)

    def _run(self) -> None:
        renewed_at = time.monotonic()
        next_renewal = renewed_at + self._interval()
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
                    renewed_at, next_renewal = asked_at, asked_at + self._interval()
            if time.monotonic() - renewed_at > self._settings.self_fence_seconds:
                log.error("lease_given_up", job_id=self._lease.job_id)
                self.lost.set()

    def _look(self, *, renew: bool) -> None:
        if renew:
            with self._database.transaction() as session:
                seconds = self._settings.lease_seconds
                wish = runs.heartbeat(session, self._lease, lease_seconds=seconds, now=clock(session))
        else:
            with self._database.reading() as session:
                wish = runs.desired_state(session, self._lease)
        if wish == DesiredState.CANCEL:
            self.cancel_wanted.set()

    def _interval(self) -> float:
        return self._settings.heartbeat_seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
