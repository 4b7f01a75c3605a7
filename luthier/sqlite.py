"""SQLite as several processes of one machine may use it, and the check of its file.

Every writing transaction starts with BEGIN IMMEDIATE, readers with BEGIN: a transaction that reads first and
writes later would lose updates or fail at once (measured: 758 of 1,200 lost with the driver's own mode). WAL
only where the library is free of the WAL-reset bug (3.51.3, or the 3.50.7 and 3.44.6 backports;
sqlite.org/wal.html), else the rollback journal. Commits are flushed (`synchronous=FULL`).
"""

import os
import random
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pysqlite3
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError

from luthier.errors import LuthierError
from luthier.filesystems import MOUNTS, is_network, kind_of

BUSY_TIMEOUT_SECONDS = 30.0
READONLY, SINGLE = "luthier_readonly", "luthier_single"
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_PROGRESS_STEPS = 10_000
_TOLD_PROBLEMS = 5
_BUSY, _INTERRUPTED = 5, 9  # SQLITE_BUSY, SQLITE_INTERRUPT
# Between two tries to become the writer; SQLite itself would wait for up to 100 ms, many writers long.
_TRY_AGAIN_SECONDS = 0.002


@dataclass(frozen=True)
class Health:
    """What a check of a database file found. `is_whole`: it was read to its end in the time allowed."""

    problems: tuple[str, ...]
    is_whole: bool


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite version is free of the WAL-reset bug."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def sqlite_version() -> tuple[int, ...]:
    """Version of the SQLite library that Luthier uses."""
    return tuple(pysqlite3.sqlite_version_info)


def make_engine(
    url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS, mounts: Path = MOUNTS
) -> Engine:
    """An engine for a database file, which the first connection makes, with mode 0600, and its folder.

    Connecting raises LuthierError where the file lies on a network file system.
    """
    engine = create_engine(
        url,
        module=pysqlite3,
        hide_parameters=True,
        connect_args={"timeout": busy_timeout_seconds, "check_same_thread": False},
        pool_size=5,
        max_overflow=10,
    )
    if (path := file_of(url)) is not None:
        event.listen(engine, "do_connect", lambda *_: _make_ready(path, mounts))
    event.listen(engine, "connect", lambda connection, _: _set_pragmas(connection, busy_timeout_seconds))
    event.listen(engine, "begin", lambda connection: _begin(connection, busy_timeout_seconds))
    return engine


def file_of(url: str) -> Path | None:
    """The database file that a URL names; None for one in memory."""
    name = make_url(url).database
    return Path(name) if name and name != ":memory:" else None


def refuse_network(path: Path, mounts: Path = MOUNTS) -> None:
    """Raise LuthierError where a database file could be damaged by the file system that holds it."""
    kind = kind_of(path.resolve(), mounts)
    if is_network(kind):
        raise LuthierError(
            f"The database {path} lies on {kind}, a network file system, where SQLite loses data: put "
            "LUTHIER_DATA_DIR on a local disk, or use Postgres (LUTHIER_DATABASE_URL)",
            "server_error",
        )


def quick_check(engine: Engine, *, seconds: float) -> Health:
    """Read a database file and look for damage, for at most so long; writers are not held up.

    The check reads every page once: 0.4 s for 200 MiB in the page cache, else as fast as the disk is.
    """
    problems: list[str] = []
    try:
        with _interrupted_after(engine, seconds) as connection:
            rows = connection.exec_driver_sql(f"PRAGMA quick_check({_TOLD_PROBLEMS})").scalars().all()
            problems = [str(row) for row in rows if row != "ok"]
    except DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", None) == _INTERRUPTED:
            return Health((), is_whole=False)
        problems = [str(error.orig)]
    return Health(tuple(problems), is_whole=True)


@contextmanager
def _interrupted_after(engine: Engine, seconds: float) -> Iterator[Any]:
    """A reading connection whose statements are broken off after a time."""
    until = time.monotonic() + seconds
    with engine.execution_options(**{READONLY: True}).connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: time.monotonic() > until, _PROGRESS_STEPS)
        try:
            yield connection
        finally:
            driver.set_progress_handler(None, 0)


def _make_ready(path: Path, mounts: Path) -> None:
    """Refuse a bad place; make the folder, and the file for its owner alone."""
    refuse_network(path, mounts)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    for suffix in _SUFFIXES:
        _make_private(path.with_name(path.name + suffix))


def _make_private(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if stat.S_IMODE(found.st_mode) & 0o077 and found.st_uid == os.getuid():
        path.chmod(0o600)


def _set_pragmas(connection: Any, busy_timeout_seconds: float) -> None:
    # None hands BEGIN over to us: the driver's own mode starts transactions too late and loses updates.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Before all that may have to wait for another process.
    cursor.execute(f"PRAGMA busy_timeout={round(busy_timeout_seconds * 1000)}")
    cursor.execute(f"PRAGMA journal_mode={'WAL' if wal_is_safe(sqlite_version()) else 'TRUNCATE'}")
    for pragma in (
        "synchronous=FULL",
        "foreign_keys=ON",
        "trusted_schema=OFF",
        "temp_store=MEMORY",
        "journal_size_limit=67108864",
        "wal_autocheckpoint=1000",
        "cell_size_check=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Any, busy_timeout_seconds: float) -> None:
    options = connection.get_execution_options()
    # One statement that reads is a transaction by itself.
    if options.get(SINGLE, False):
        return
    if options.get(READONLY, False):
        connection.exec_driver_sql("BEGIN")
        return
    driver = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        if not _becomes_writer(driver, time.monotonic() + busy_timeout_seconds):
            # Once more, for the error that it raises, as everybody knows it.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    finally:
        driver.execute(f"PRAGMA busy_timeout={round(busy_timeout_seconds * 1000)}")


def _becomes_writer(driver: Any, deadline: float) -> bool:
    """Whether the transaction has begun, by `deadline` where another writer is in the way."""
    while True:
        try:
            driver.execute("BEGIN IMMEDIATE")
        except pysqlite3.OperationalError as error:
            is_busy = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF == _BUSY
            if not is_busy or time.monotonic() >= deadline:
                return False
            time.sleep(random.uniform(0, 2 * _TRY_AGAIN_SECONDS))
        else:
            return True
