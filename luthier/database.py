"""The door to the database: one engine a process, short transactions, the database's own clock.

SQLite is driven as it is safe for several processes: every writing transaction starts with BEGIN IMMEDIATE,
readers with BEGIN; WAL only where the library is free of the WAL-reset bug (3.51.3, or the 3.50.7 and 3.44.6
backports; sqlite.org/wal.html), else the rollback journal. On Postgres nothing special is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pysqlite3
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session, sessionmaker

from luthier.accounts import keep_accounts

BUSY_TIMEOUT_SECONDS = 30


class Database:
    """Engine and sessions for one database URL. Making one connects to nothing."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(url) if self.is_sqlite else _postgres_engine(url)
        reading = self.engine.execution_options(luthier_readonly=True)
        self._writing_session = sessionmaker(self.engine, expire_on_commit=False)
        keep_accounts(self._writing_session)
        self._reading_session = sessionmaker(reading, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A writing transaction: committed at the end of the block, rolled back on an exception."""
        with self._writing_session.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads; on SQLite it never waits for a writer."""
        with self._reading_session.begin() as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()


def clock(session: Session) -> datetime:
    """The database's time, aware, UTC. Leases are compared with this clock and no other.

    SQLite lives in this process, so its clock is ours.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now.astimezone(UTC)


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite version is free of the WAL-reset bug."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def sqlite_version() -> tuple[int, ...]:
    """Version of the SQLite library that Luthier uses."""
    return tuple(pysqlite3.sqlite_version_info)


def _postgres_engine(url: str) -> Engine:
    return create_engine(
        url.replace("postgresql://", "postgresql+psycopg://", 1),
        pool_size=5,
        max_overflow=10,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"connect_timeout": 5, "application_name": "luthier"},
    )


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        module=pysqlite3,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        pool_size=5,
        max_overflow=10,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # None hands BEGIN over to us: the driver's own mode starts transactions too late and loses updates.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA journal_mode={'WAL' if wal_is_safe(sqlite_version()) else 'TRUNCATE'}")
    for pragma in (
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
        "foreign_keys=ON",
        "trusted_schema=OFF",
        "temp_store=MEMORY",
        "journal_size_limit=67108864",
        "cell_size_check=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    readonly = connection.get_execution_options().get("luthier_readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
