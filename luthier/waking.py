"""Wakes the relays at once when a message enters the outbox, where the database can: NOTIFY on Postgres.

It only shortens a wait. Who is not woken (SQLite, a pooler between, a lost connection) looks again after its
rest, as before; a notification is sent with the commit, and so never before the message can be seen.
"""

from typing import Any

import structlog
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from luthier.tables import Outbox

log = structlog.get_logger()
_CHANNEL = "luthier_outbox"
_NOTIFY = text(f"NOTIFY {_CHANNEL}")


def announce_messages(sessions: sessionmaker[Session]) -> None:
    """Have all sessions of a maker tell of new messages; for Postgres."""
    event.listen(sessions, "after_flush", _announce)


class Waker:
    """Waits for the next message; of one thread.

    Args:
        engine: of Postgres; None where nobody can be woken.
    """

    def __init__(self, engine: Engine | None) -> None:
        self._engine = engine
        # psycopg's connection, which SQLAlchemy does not type.
        self._listening: Any = None

    @property
    def is_listening(self) -> bool:
        """Whether messages can be heard of."""
        return self._listening is not None

    def wait(self, seconds: float) -> bool:
        """Whether a message has come since the last wait, or comes within some seconds.

        The first wait only begins to listen, and one that cannot listen is over at once, too.
        """
        if self._engine is None:
            return False
        try:
            return self._hears(self._engine, seconds)
        except (self._engine.dialect.loaded_dbapi.Error, DBAPIError):
            log.debug("not_listening", channel=_CHANNEL)
            self.close()
            return False

    def close(self) -> None:
        """Stop listening."""
        connection, self._listening = self._listening, None
        if connection is not None:
            connection.close()

    def _hears(self, engine: Engine, seconds: float) -> bool:
        if self._listening is None:
            pooled = engine.raw_connection()
            self._listening = pooled.driver_connection
            # It stays with us: the pool may give its connections to anybody.
            pooled.detach()
            self._listening.autocommit = True
            self._listening.execute(f"LISTEN {_CHANNEL}")
            # What came before is found by looking, which the caller does next.
            return False
        return any(True for _ in self._listening.notifies(timeout=seconds, stop_after=1))


def announce(session: Session) -> None:
    """Tell of a new message that no flush has brought, with the commit; only Postgres can."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_NOTIFY)


def _announce(session: Session, _context: object) -> None:
    if any(isinstance(row, Outbox) for row in session.new):
        announce(session)
