"""The dispatcher: relays doorbells, takes back lost leases, rings again for what was forgotten.

Any number may run; the leader row lets one be active. After it became the leader, or after the database was
away, it waits one lease before it takes anything back: all leases look lost then, and none may be.
`python -P -m worker.dispatcher` is the process.
"""

import os
import signal
import socket
import threading
import time

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation, open_installation
from luthier.logs import configure_logs
from luthier.queue import make_celery, ring_doorbell
from luthier.service import errands, leadership, outbox, sweep
from luthier.settings import Settings

log = structlog.get_logger()
_RELAY_LIMIT = 100
_RELAY_SECONDS = 0.2
_POSTPONE_SECONDS = 5.0
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
        """Work until told to stop."""
        while not stopping.is_set():
            try:
                self.tick(time.monotonic())
            except DBAPIError:
                log.warning("database_unreachable")
                self._enter_safe_mode(time.monotonic())
            stopping.wait(_RELAY_SECONDS if self._celery else self._installation.settings.poll_seconds)

    def tick(self, monotonic: float) -> None:
        """One round: stay leader, relay what is due, and sweep when its time has come."""
        if not self._lead(monotonic):
            return
        self._relay()
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

    def _relay(self) -> None:
        """Send what the outbox holds. A doorbell that cannot be sent is tried again; agents also poll."""
        with self._installation.database.reading() as session:
            messages = outbox.due_messages(session, limit=_RELAY_LIMIT, now=clock(session))
        if not messages:
            return
        sent: list[int] = []
        try:
            for message in messages:
                if self._celery is not None:
                    ring_doorbell(self._celery, message.key, message.payload["job_id"])
                sent.append(message.id)
        except OperationalError:
            log.warning("broker_unreachable")
        unsent = [message.id for message in messages if message.id not in sent]
        with self._installation.database.transaction() as session:
            now = clock(session)
            outbox.record_sent(session, sent, now=now)
            outbox.postpone(session, unsent, seconds=_POSTPONE_SECONDS, now=now)

    def _sweep(self, *, may_take_back: bool) -> None:
        with self._installation.database.transaction() as session:
            lost = self._take_back(session) if may_take_back else []
            now = clock(session)
            if self._celery is not None:
                sweep.ring_forgotten(session, older_than_seconds=_FORGOTTEN_SECONDS, now=now)
            outbox.forget_sent(session, older_than_seconds=_KEEP_SENT_SECONDS, now=now)
            forgotten = errands.forget_old(session, now=now)
        for key in forgotten:
            self._installation.storage.delete(key)
        for job_id in lost:
            log.warning("lease_swept", job_id=job_id)

    def _take_back(self, session: Session) -> list[str]:
        return sweep.sweep(
            session, max_runs=self._installation.settings.max_infra_restarts, now=clock(session)
        )


def main() -> None:
    """The dispatcher process."""
    settings = Settings()
    configure_logs(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    celery = make_celery(settings.redis_url.get_secret_value()) if settings.redis_url else None
    holder = f"{socket.gethostname()}/{os.getpid()}#{new_id('instance')}"
    Dispatcher(open_installation(settings), celery, holder).serve(stopping)


if __name__ == "__main__":
    main()
