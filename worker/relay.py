"""The relay: takes messages of one topic from the outbox to where they go, in a thread of its own.

A receiver that is away, full or hung holds up nobody but this thread: the dispatcher keeps its seat and
sweeps meanwhile. A message is marked as sent by the leader alone, so that of two dispatchers at least one
sends it. What a topic's messages mean stands in its `Sender`.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.installation import Installation
from luthier.service import outbox
from luthier.service.leadership import LeadershipLostError
from luthier.tables import Outbox
from worker.seat import Seat

log = structlog.get_logger()
_LIMIT = 1000
_PAUSE_SECONDS = 5.0
# A relay that is woken looks all the same: what was postponed becomes due, and it may be told to stop.
_LISTEN_SECONDS = 1.0


class Sender(Protocol):
    """Where the messages of one topic go.

    Attributes:
        topic: of `Outbox.topic`.
        rest_seconds: between two looks for messages, where nothing wakes the relay.
    """

    topic: str
    rest_seconds: float

    def look(self, session: Session) -> None:
        """Read what sending needs to know; called before `send` where there are messages."""
        ...

    def send(self, messages: Sequence[Outbox]) -> set[int]:
        """Send messages, which may have been sent before; returns the ids of those that could not be."""
        ...


class Relay:
    """Sends what the outbox holds for a topic, as long as its dispatcher leads."""

    def __init__(self, installation: Installation, sender: Sender, seat: Seat) -> None:
        self._installation, self._sender, self._seat = installation, sender, seat

    def serve(self, stopping: threading.Event) -> None:
        """Relay until told to stop; after a receiver that failed, a pause."""
        waker = self._installation.database.waker()
        while not stopping.is_set():
            try:
                well = self.relay()
            except LeadershipLostError:
                well = True
            except DBAPIError:
                log.warning("database_unreachable", part="relay", topic=self._sender.topic)
                well = False
            except Exception:
                log.exception("relay_failed", topic=self._sender.topic)
                well = False
            if not well:
                stopping.wait(_PAUSE_SECONDS)
            elif not waker.wait(_LISTEN_SECONDS) and not waker.is_listening:
                stopping.wait(self._sender.rest_seconds)
        waker.close()

    def relay(self) -> bool:
        """Send what is due; False where not all was sent, which is then tried again.

        Raises:
            LeadershipLostError: what was sent is not marked so, and the next leader sends it once more.
        """
        count = _LIMIT
        while count == _LIMIT:
            count, well = self._relay_some()
            if not well:
                return False
        return True

    def _relay_some(self) -> tuple[int, bool]:
        """How many messages were due, up to a limit, and whether all of them were sent."""
        with self._installation.database.reading() as session:
            now = clock(session)
            if not self._seat.stands(session, now=now):
                return 0, True
            messages = outbox.due_messages(session, topic=self._sender.topic, limit=_LIMIT, now=now)
            if not messages:
                return 0, True
            self._sender.look(session)
        unsent = self._sender.send(messages)
        with self._seat.transaction() as (session, now):
            sent = [message.id for message in messages if message.id not in unsent]
            outbox.record_sent(session, sent, now=now)
            outbox.postpone(session, sorted(unsent), seconds=_PAUSE_SECONDS, now=now)
        return len(messages), not unsent
