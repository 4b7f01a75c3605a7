"""How doorbells leave the outbox: over a broker, or not at all where agents poll."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.queue import ring_doorbells
from luthier.service.doorbells import DOORBELL
from luthier.settings import Settings
from luthier.statistics import count_workers
from luthier.tables import Outbox

log = structlog.get_logger()
_REST_SECONDS = 0.05


class DoorbellSender:
    """Rings for the workers of each queue.

    Args:
        celery: where doorbells go; None where agents poll, and doorbells are done with as they come.
    """

    topic = DOORBELL

    def __init__(self, settings: Settings, celery: Celery | None) -> None:
        self._lease_seconds, self._celery = settings.lease_seconds, celery
        self.rest_seconds = _REST_SECONDS if celery else settings.poll_seconds
        self._listeners: Mapping[str, int] = {}
        self._broker_is_well = True

    def look(self, session: Session) -> None:
        self._listeners = count_workers(
            session, since=clock(session) - timedelta(seconds=self._lease_seconds)
        )

    def send(self, messages: Sequence[Outbox]) -> set[int]:
        if self._celery is None:
            return set()
        waiting: dict[str, list[Outbox]] = defaultdict(list)
        for message in messages:
            waiting[message.key].append(message)
        unsent = {message.id for message in messages}
        try:
            for queue, rung in waiting.items():
                job_ids = [message.payload["job_id"] for message in rung]
                ring_doorbells(self._celery, queue, job_ids, listeners=self._listeners.get(queue, 0))
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
