"""The relay: takes doorbells from the outbox to the broker, in a thread of its own.

A broker that is away, full or hung holds up nobody but this thread, and that for seconds: the dispatcher
renews its leadership and sweeps meanwhile, and agents look into the database by themselves.
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError

from luthier.database import clock
from luthier.installation import Installation
from luthier.queue import ring_doorbells
from luthier.service import doorbells, leadership, outbox
from luthier.statistics import count_workers
from luthier.tables import Outbox

log = structlog.get_logger()
_LIMIT = 1000
_RELAY_SECONDS = 0.05
_PAUSE_SECONDS = 5.0


class Relay:
    """Sends what the outbox holds, as long as its dispatcher leads.

    Args:
        celery: where doorbells go; None where agents poll, and doorbells are done with as they come.
        holder: names the dispatcher in the leader row.
    """

    def __init__(self, installation: Installation, celery: Celery | None, holder: str) -> None:
        self._installation, self._celery, self._holder = installation, celery, holder
        self._broker_is_well = True

    def serve(self, stopping: threading.Event) -> None:
        """Relay until told to stop; after a broker that failed, a pause."""
        pause = _RELAY_SECONDS if self._celery else self._installation.settings.poll_seconds
        while not stopping.is_set():
            try:
                well = self.relay()
            except DBAPIError:
                log.warning("database_unreachable", part="relay")
                well = False
            except Exception:
                log.exception("relay_failed")
                well = False
            stopping.wait(pause if well else _PAUSE_SECONDS)

    def relay(self) -> bool:
        """One round; False where the broker did not take all. What it did not take is tried again."""
        with self._installation.database.reading() as session:
            now = clock(session)
            if not leadership.is_leader(session, self._holder, now=now):
                return True
            messages = outbox.due_messages(session, topic=doorbells.DOORBELL, limit=_LIMIT, now=now)
            if not messages:
                return True
            since = now - timedelta(seconds=self._installation.settings.lease_seconds)
            listeners = count_workers(session, since=since)
        unsent = self._send(messages, listeners)
        with self._installation.database.transaction() as session:
            now = clock(session)
            sent = [message.id for message in messages if message.id not in unsent]
            outbox.record_sent(session, sent, now=now)
            outbox.postpone(session, sorted(unsent), seconds=_PAUSE_SECONDS, now=now)
        return not unsent

    def _send(self, messages: Sequence[Outbox], listeners: Mapping[str, int]) -> set[int]:
        """Ids of the messages that could not be sent."""
        if self._celery is None:
            return set()
        waiting: dict[str, list[Outbox]] = defaultdict(list)
        for message in messages:
            waiting[message.key].append(message)
        unsent = {message.id for message in messages}
        try:
            for queue, rung in waiting.items():
                job_ids = [message.payload["job_id"] for message in rung]
                ring_doorbells(self._celery, queue, job_ids, listeners=listeners.get(queue, 0))
                unsent -= {message.id for message in rung}
        except OperationalError as error:
            self._tell("broker_unreachable", well=False, reason=str(error))
        else:
            self._tell("broker_reached", well=True)
        return unsent

    def _tell(self, event: str, *, well: bool, **fields: str) -> None:
        """Log a change alone: a broker may be away for a day."""
        if well != self._broker_is_well:
            log.warning(event, **fields)
        self._broker_is_well = well
