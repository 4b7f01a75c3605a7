"""The dispatcher: takes back lost leases, wakes what waited, rings for what was forgotten, tidies up.

Any number may run; the leader row lets one be active, and its epoch fences all that one writes. After it
became the leader, or after the database was away, it waits one lease before it takes anything back: all
leases look lost then, and none may be. What others may hold up has a thread of its own: a relay for each
topic of the outbox, and housekeeping. `python -P -m worker.dispatcher` is the process.
"""

import os
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
from luthier.service import doorbells, sweep, watching
from luthier.service.leadership import LeadershipLostError
from luthier.settings import Settings
from luthier.statistics import count_workers
from worker.caution import Caution
from worker.relay import Relay
from worker.ringing import DoorbellSender
from worker.seat import Seat

log = structlog.get_logger()
_FORGOTTEN_SECONDS = 60.0
# A thousand leases that were lost at once are taken back in ten transactions, not in one that holds up all.
_LOST_LIMIT = 10_000


class Dispatcher:
    """One dispatcher process.

    Args:
        celery: where doorbells go; None where agents poll.
        holder: names this process in the leader row.
    """

    def __init__(self, installation: Installation, celery: Celery | None, holder: str) -> None:
        self._installation, self._celery = installation, celery
        self._seat = Seat(installation, holder)
        self._caution = Caution(installation.settings.lease_seconds)
        self._next_sweep = 0.0

    def serve(self, stopping: threading.Event) -> None:
        """Work until told to stop, then let another lead at once."""
        relay = Relay(
            self._installation, DoorbellSender(self._installation.settings, self._celery), self._seat
        )
        helpers = [threading.Thread(target=relay.serve, args=(stopping,), name="relay", daemon=True)]
        for helper in helpers:
            helper.start()
        while not stopping.is_set():
            self._tick_guarded()
            stopping.wait(self._installation.settings.poll_seconds)
        for helper in helpers:
            helper.join()
        try:
            self._seat.leave()
        except DBAPIError:
            log.warning("database_unreachable")

    def _tick_guarded(self) -> None:
        try:
            self.tick(time.monotonic())
        except LeadershipLostError:
            log.warning("leadership_in_doubt")
        except DBAPIError:
            log.warning("database_unreachable")
            self._caution.alarm()

    def tick(self, monotonic: float) -> None:
        """One round: keep the seat, wake what is due, and sweep when its time has come.

        Raises:
            LeadershipLostError: somebody else leads by now; nothing more was written.
        """
        if self._seat.keep(monotonic):
            log.info("became_leader", holder=self._seat.holder)
            self._caution.alarm()
        if not self._seat.is_taken:
            return
        if monotonic >= self._next_sweep:
            self._next_sweep = monotonic + self._installation.settings.sweep_seconds
            self._sweep(monotonic)

    def _sweep(self, monotonic: float) -> None:
        if not self._caution.is_quiet(monotonic):
            self._take_back(monotonic)
        if self._celery is not None:
            with self._seat.transaction() as (session, now):
                self._ring_forgotten(session, now)

    def _take_back(self, monotonic: float) -> None:
        with self._installation.database.reading() as session:
            lost = watching.lost_leases(session, limit=_LOST_LIMIT, now=clock(session))
            leased_count = watching.count_leased(session)
        if not self._caution.believes(lost, leased_count, monotonic):
            log.warning("many_leases_lost", lost=len(lost), leased=leased_count)
            return
        if not lost:
            return
        with self._seat.transaction() as (session, now):
            swept = sweep.sweep(session, max_runs=self._installation.settings.max_infra_restarts, now=now)
        for job_id in swept:
            log.warning("lease_swept", job_id=job_id)

    def _ring_forgotten(self, session: Session, now: datetime) -> None:
        since = now - timedelta(seconds=self._installation.settings.lease_seconds)
        listeners = count_workers(session, since=since)
        doorbells.ring_forgotten(session, older_than_seconds=_FORGOTTEN_SECONDS, listeners=listeners, now=now)


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
