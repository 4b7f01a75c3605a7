"""How Postgres is driven: few round trips beside the statements, and a server that is gone is noticed.

A connection that has lain for a while is asked whether it still stands before it is used; in a busy process
none does, so a request does not pay for that. What fails on one that was lost meanwhile is answered with 503.
"""

import time
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

_TRUSTED_SECONDS = 1.0
_RETURNED_AT = "returned_at"


def make_engine(
    url: str, *, commits_alone: bool = False, trusted_seconds: float = _TRUSTED_SECONDS
) -> Engine:
    """An engine for a database URL; it connects when it is used.

    Args:
        commits_alone: every statement is a transaction of its own, without a BEGIN or a ROLLBACK around it.
        trusted_seconds: for so long a connection may lie without being asked.
    """
    options: dict[str, Any] = (
        {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None} if commits_alone else {}
    )
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://", 1),
        pool_size=5,
        max_overflow=10,
        hide_parameters=True,
        # A server that is gone without a word is noticed within seconds, also in the middle of a statement.
        connect_args={
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "application_name": "luthier",
        },
        **options,
    )
    event.listen(engine, "checkin", _note_return)
    event.listen(
        engine,
        "checkout",
        lambda driver, record, _: _require_alive(engine, driver, record, trusted_seconds),
    )
    return engine


def _note_return(_driver: object, record: Any) -> None:
    record.info[_RETURNED_AT] = time.monotonic()


def _require_alive(engine: Engine, driver: Any, record: Any, trusted_seconds: float) -> None:
    """Have a connection replaced, and all beside it, where it has lain for long and does not answer."""
    returned_at = record.info.get(_RETURNED_AT)
    if returned_at is None or time.monotonic() - returned_at < trusted_seconds:
        return
    dialect = engine.dialect
    try:
        dialect.do_ping(driver)
    except dialect.loaded_dbapi.Error as error:
        if not dialect.is_disconnect(error, driver, None):
            raise
        raise InvalidatePoolError from error
