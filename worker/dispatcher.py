"""The dispatcher: takes back lost leases, wakes what waited, rings for what was forgotten, tidies up.

Any number may run; the leader row lets one be active, and its epoch fences all that one writes. After it
became the leader, or after the database was away, it waits one lease before it takes anything back: all
leases look lost then, and none may be. What others may hold up has a thread of its own: what takes a topic's
messages out of the outbox, and housekeeping. `python -P -m worker.dispatcher` is the process.
"""

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import structlog
from celery import Celery
from sqlalchemy.exc import DBAPIError

from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation, open_installation
from luthier.logs import configure_logs
from luthier.queue import make_sender
from luthier.service import blocking, doorbells, quotas, sweep, watching
from luthier.service.leadership import LeadershipLostError
from luthier.service.retries import Limits
from luthier.settings import Settings
from luthier.statistics import count_workers
from luthier.status import BlockedOn
from worker.caution import Caution
from worker.delivering import WebhookDeliverer
from worker.disk_watch import DiskWatch
from worker.housekeeping import Housekeeper
from worker.relay import Relay, Sender
from worker.ringing import DoorbellSender
from worker.seat import Seat

log = structlog.get_logger()
_FORGOTTEN_SECONDS = 60.0
# In one transaction, so that none holds up the others for long.
_BATCH = 100
_BATCHES = 100


class Dispatcher:
    """One dispatcher process.

    Args:
        celery: where doorbells go; None where agents poll.
        holder: names this process in the leader row.
    """

    def __init__(self, installation: Installation, celery: Celery | None, holder: str) -> None:
        self._database, self._settings = installation.database, installation.settings
        self._rings = celery is not None
        self._seat = Seat(installation, holder)
        self._caution = Caution(self._settings.lease_seconds)
        self._disk = DiskWatch(installation, self._seat)
        self._housekeeper = Housekeeper(installation, self._seat)
        # A topic of the outbox is added here; webhooks, which go to many receivers, have their own way out.
        senders: Sequence[Sender] = [DoorbellSender(self._settings, celery)]
        self._relays = [Relay(installation, sender, self._seat) for sender in senders]
        self._webhooks = WebhookDeliverer(installation, self._seat)
        self._next_sweep = 0.0

    def serve(self, stopping: threading.Event) -> None:
        """Work until told to stop, then let another lead at once."""
        parts = [self._housekeeper.serve, self._webhooks.serve, *(relay.serve for relay in self._relays)]
        threads = [threading.Thread(target=part, args=(stopping,), daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        while not stopping.is_set():
            self._tick_guarded(time.monotonic())
            stopping.wait(self._settings.poll_seconds)
        for thread in threads:
            thread.join()
        try:
            self._seat.leave()
        except DBAPIError:
            log.warning("database_unreachable")

    def _tick_guarded(self, monotonic: float) -> None:
        try:
            self.tick(monotonic)
        except LeadershipLostError:
            log.warning("leadership_in_doubt")
        except DBAPIError:
            log.warning("database_unreachable")
            self._caution.alarm()

    def tick(self, monotonic: float) -> None:
        """One round: keep the seat, wake what is due, and sweep when its time has come.

        Raises:
            LeadershipLostError: this process does not lead any more; nothing was written since.
        """
        if self._seat.keep(monotonic):
            log.info("became_leader", holder=self._seat.holder)
            self._caution.alarm()
        if not self._seat.is_taken:
            return
        self._wake()
        if monotonic >= self._next_sweep:
            self._next_sweep = monotonic + self._settings.sweep_seconds
            if not self._caution.is_quiet(monotonic):
                self._take_back(monotonic)
            self._disk.look()
            self._watch_quotas()
            self._ring_forgotten()

    def _wake(self) -> None:
        with self._database.reading() as session:
            is_due = watching.has_due(session, now=clock(session))
        if is_due:
            with self._seat.transaction() as (session, now):
                sweep.wake_waiting(session, now=now, limit=_BATCH)
                blocking.unblock(session, blocked_on=BlockedOn.MODEL, now=now, limit=_BATCH)

    def _take_back(self, monotonic: float) -> None:
        with self._database.reading() as session:
            lost = watching.lost_leases(session, limit=_BATCH * _BATCHES, now=clock(session))
            leased_count = watching.count_leased(session)
        if not self._caution.believes(lost, leased_count, monotonic):
            log.warning("many_leases_lost", lost=len(lost), leased=leased_count)
            return
        for _ in range(0, len(lost), _BATCH):
            with self._seat.transaction() as (session, now):
                limits = Limits.of(self._settings)
                swept = sweep.sweep(session, limits=limits, jitter=random.random(), now=now, at_most=_BATCH)
            for job_id in swept:
                log.warning("lease_swept", job_id=job_id)

    def _watch_quotas(self) -> None:
        """Have jobs of projects without room in storage wait, and go on once their project has some."""
        with self._database.reading() as session:
            full = quotas.full_projects(session, quotas.limits_of(self._settings))
            waits = watching.has_blocked(session, blocked_on=BlockedOn.QUOTA)
        if not full and not waits:
            return
        with self._seat.transaction() as (session, now):
            blocked = blocking.block_queued(session, full, now=now, limit=_BATCH)
            freed = blocking.unblock(
                session, blocked_on=BlockedOn.QUOTA, now=now, limit=_BATCH, except_projects=full
            )
        for job_id in blocked:
            log.info("job_blocked", job_id=job_id, blocked_on=str(BlockedOn.QUOTA))
        for job_id in freed:
            log.info("job_unblocked", job_id=job_id, blocked_on=str(BlockedOn.QUOTA))

    def _ring_forgotten(self) -> None:
        if not self._rings:
            return
        with self._seat.transaction() as (session, now):
            listeners = count_workers(session, since=now - timedelta(seconds=self._settings.lease_seconds))
            doorbells.ring_forgotten(
                session, older_than_seconds=_FORGOTTEN_SECONDS, listeners=listeners, now=now
            )


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
