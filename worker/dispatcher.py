"""The dispatcher: takes back lost leases, rings again for what was forgotten, and has doorbells relayed.

Any number may run; the leader row lets one be active. After it became the leader, or after the database was
away, it waits one lease before it takes anything back: all leases look lost then, and none may be.
`python -P -m worker.dispatcher` is the process.
"""

import os
import random
import signal
import socket
import threading
import time
from datetime import datetime, timedelta

import structlog
from celery import Celery
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation, open_installation
from luthier.logs import configure_logs
from luthier.queue import make_sender
from luthier.service import doorbells, errands, leadership, outbox, sweep
from luthier.service.retries import Limits
from luthier.settings import Settings
from luthier.statistics import count_workers
from luthier.storage import discard
from worker.relay import Relay

log = structlog.get_logger()
_WAKE_LIMIT = 100
_FORGOTTEN_SECONDS = 60.0
_KEEP_SENT_SECONDS = 24 * 3600.0


class Dispatcher:
    """One dispatcher process.

    Args:
        celery: where doorbells go; None where agents poll.
        holder: names this process in the leader row.
    """

    def __init__(self, installation: Installation, celery: Celery | None, holder: str) -> None:
        self._installation, self._celery, self._holder = installation, celery, holder
        self._safe_until = 0.0
        self._next_sweep = 0.0

    def serve(self, stopping: threading.Event) -> None:
        """Work until told to stop; the relay has a thread of its own, since a broker may hang."""
        relay = Relay(self._installation, self._celery, self._holder)
        relaying = threading.Thread(target=relay.serve, args=(stopping,), name="relay", daemon=True)
        relaying.start()
        while not stopping.is_set():
            try:
                self.tick(time.monotonic())
            except DBAPIError:
                log.warning("database_unreachable")
                self._enter_safe_mode(time.monotonic())
            stopping.wait(self._installation.settings.poll_seconds)
        relaying.join()

    def tick(self, monotonic: float) -> None:
        """One round: stay leader, and sweep when its time has come."""
        if not self._lead(monotonic):
            return
        if monotonic >= self._next_sweep:
            self._next_sweep = monotonic + self._installation.settings.sweep_seconds
            self._sweep(may_take_back=monotonic >= self._safe_until)

    def _lead(self, monotonic: float) -> bool:
        settings = self._installation.settings
        with self._installation.database.transaction() as session:
            leads, became = leadership.lead(
                session, self._holder, lease_seconds=settings.lease_seconds, now=clock(session)
            )
        if became:
            log.info("became_leader", holder=self._holder)
            self._enter_safe_mode(monotonic)
        return leads

    def _enter_safe_mode(self, monotonic: float) -> None:
        self._safe_until = monotonic + self._installation.settings.lease_seconds

    def _sweep(self, *, may_take_back: bool) -> None:
        with self._installation.database.transaction() as session:
            lost = self._take_back(session) if may_take_back else []
            now = clock(session)
            if self._celery is not None:
                self._ring_forgotten(session, now)
            sweep.wake_waiting(session, now=now, limit=_WAKE_LIMIT)
            outbox.forget_sent(session, older_than_seconds=_KEEP_SENT_SECONDS, now=now)
            forgotten = errands.forget_old(session, now=now)
        discard(self._installation.storage, forgotten)
        for job_id in lost:
            log.warning("lease_swept", job_id=job_id)

    def _ring_forgotten(self, session: Session, now: datetime) -> None:
        since = now - timedelta(seconds=self._installation.settings.lease_seconds)
        listeners = count_workers(session, since=since)
        doorbells.ring_forgotten(session, older_than_seconds=_FORGOTTEN_SECONDS, listeners=listeners, now=now)

    def _take_back(self, session: Session) -> list[str]:
        limits = Limits.of(self._installation.settings)
        return sweep.sweep(session, limits=limits, jitter=random.random(), now=clock(session), at_most=None)


def main() -> None:
    """The dispatcher process."""
    settings = Settings()
    configure_logs(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    celery = make_sender(settings.redis_url.get_secret_value()) if settings.redis_url else None
    holder = f"{socket.gethostname()}/{os.getpid()}#{new_id('instance')}"
    Dispatcher(open_installation(settings), celery, holder).serve(stopping)


if __name__ == "__main__":
    main()
