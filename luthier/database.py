"""The door to the database: one engine a process, short transactions, the database's own clock.

How they are driven stands in `sqlite` and `postgres`. A COMMIT whose answer is lost
may have happened: it raises `CommitUnknownError`, and whoever gets that reads again before doing anything
again. `Database.run` does so, and tries again what the database itself took back.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from luthier import postgres, sqlite
from luthier.accounts import keep_accounts
from luthier.audit import keep_log
from luthier.filesystems import MOUNTS
from luthier.reserve import Reserve
from luthier.waking import Waker, announce_messages

Result = TypeVar("Result")
Asked = TypeVar("Asked")

log = structlog.get_logger()
_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.02
# SQLite's primary result codes: BUSY, FULL, CONSTRAINT; and the one for shared memory that finds no room.
_SQLITE_BUSY, _SQLITE_FULL, _SQLITE_CONSTRAINT, _SQLITE_SHMSIZE = 5, 13, 19, 4874
# Postgres: what two transactions did to each other, which trying again mends; a full disk; and the classes
# of errors that answer a COMMIT with "taken back" (40003 says that nobody knows).
_CONFLICTS = frozenset({"40001", "40P01"})
_DISK_FULL = "53100"
_TAKEN_BACK_CLASSES, _UNKNOWN = frozenset({"23", "25", "40"}), "40003"


class CommitUnknownError(OperationalError):
    """COMMIT was sent and its answer was not heard: what it wrote may stand, or may not.

    Never do the same again blindly: read what it would have written, by its id or its epoch.
    """


class Database:
    """Engine and sessions for one database URL. Making one connects to nothing.

    Args:
        busy_timeout_seconds: how long SQLite waits for another writer, before the transaction fails.
        reserve_bytes: held back on SQLite's disk, see `reserve`; 0 for nothing.
        mounts: the kernel's table of mounts.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_seconds: float = sqlite.BUSY_TIMEOUT_SECONDS,
        reserve_bytes: int = 0,
        mounts: Path = MOUNTS,
    ) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = (
            sqlite.make_engine(url, busy_timeout_seconds=busy_timeout_seconds, mounts=mounts)
            if self.is_sqlite
            else postgres.make_engine(url)
        )
        self.file = sqlite.file_of(url) if self.is_sqlite else None
        self._reserve = (
            Reserve(self.file.with_name(f"{self.file.name}.reserve"), reserve_bytes) if self.file else None
        )
        self._reading = self.engine.execution_options(**{sqlite.READONLY: True})
        self._glancing = (
            self._reading.execution_options(**{sqlite.SINGLE: True})
            if self.is_sqlite
            else postgres.make_engine(url, commits_alone=True)
        )
        self._writing_session = sessionmaker(self.engine, expire_on_commit=False)
        keep_accounts(self._writing_session)
        keep_log(self._writing_session)
        if not self.is_sqlite:
            announce_messages(self._writing_session)
        self._reading_session = sessionmaker(self._reading, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A writing transaction: committed at the end of the block, rolled back on an exception.

        Raises:
            CommitUnknownError: nobody knows whether the block's writes stand.
            DBAPIError: they do not. Where the disk is full, the reserve was given up: another try may do.
        """
        try:
            with self._writing_session() as session:
                yield session
                # What fails here has surely not been committed.
                session.flush()
                _commit(session)
        except DBAPIError as error:
            if is_disk_full(error):
                self.release_reserve()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads, and is never committed; on SQLite it never waits for a writer."""
        with self._reading_session() as session:
            yield session

    @contextmanager
    def glancing(self) -> Iterator[Connection]:
        """A connection for one statement that only reads, without a transaction around it.

        A session costs several times as much, and a transaction two more round trips.
        """
        with self._glancing.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that reads, and sees the database as it was at the first statement."""
        options = {sqlite.READONLY: True} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.engine.execution_options(**options).connect() as connection:
            yield connection

    def run(
        self,
        work: Callable[[Session], Result],
        *,
        recall: Callable[[Session], Result | None] | None = None,
    ) -> Result:
        """Do `work` in a transaction; again, a few times, where the database took it back in a conflict.

        Args:
            work: writes through its session and does nothing else.
            recall: what `work` would give, read from what it would have written, or None where that is not
                there. Asked once after a commit whose outcome is unknown.
        Raises:
            CommitUnknownError: and `recall` found nothing.
        """
        for number in range(1, _TRIES + 1):
            try:
                with self.transaction() as session:
                    return work(session)
            except CommitUnknownError:
                found = self._recall(recall) if recall is not None else None
                if found is None:
                    raise
                return found
            except DBAPIError as error:
                if number == _TRIES or not (is_conflict(error) or is_disk_full(error)):
                    raise
                time.sleep(random.uniform(0, _FIRST_PAUSE_SECONDS * 2**number))
        raise AssertionError("the last try returns or raises")

    def run_all(
        self,
        asked: Sequence[Asked],
        work: Callable[[Session, Sequence[Asked]], Sequence[Result]],
        *,
        recall: Callable[[Session, Asked], Result | None],
    ) -> list[Result | Exception]:
        """Do what several have asked for in one transaction with one commit; see `run`.

        Where anything fails, nothing of it stands, and each is served by itself.

        Returns:
            What `work` gave for each, or raised.
        """
        if len(asked) > 1:
            try:
                with self.transaction() as session:
                    return [*work(session, asked)]
            except CommitUnknownError as error:
                found = [self._recall_one(each, recall) for each in asked]
                return [error if each is None else each for each in found]
            except Exception:
                log.debug("failed_together", count=len(asked), exc_info=True)
        return [self._outcome(each, work, recall) for each in asked]

    def _outcome(
        self,
        asked: Asked,
        work: Callable[[Session, Sequence[Asked]], Sequence[Result]],
        recall: Callable[[Session, Asked], Result | None],
    ) -> Result | Exception:
        try:
            return self.run(
                lambda session: work(session, [asked])[0], recall=lambda session: recall(session, asked)
            )
        except Exception as error:  # noqa: BLE001, the others' outcomes are to be told, too
            return error

    def _recall_one(self, asked: Asked, recall: Callable[[Session, Asked], Result | None]) -> Result | None:
        return self._recall(lambda session: recall(session, asked))

    @property
    def reserve_is_spent(self) -> bool:
        """Whether the disk was full, and the room that was held back has been given up."""
        return self._reserve is not None and self._reserve.is_spent

    def release_reserve(self) -> bool:
        """Give up the room that is held back, so that transactions fit; returns whether there was any."""
        return self._reserve.release() if self._reserve else False

    def restore_reserve(self) -> bool:
        """Hold room back again; returns False where the disk has not enough."""
        return self._reserve.restore() if self._reserve else True

    def waker(self) -> Waker:
        """Waits for messages in the outbox, as far as this database can tell of them."""
        return Waker(None if self.is_sqlite else self.engine)

    def close(self) -> None:
        self._glancing.dispose()
        self.engine.dispose()

    def _recall(self, recall: Callable[[Session], Result | None]) -> Result | None:
        try:
            with self.reading() as session:
                return recall(session)
        except DBAPIError:
            return None


def clock(session: Session) -> datetime:
    """The database's time, aware, UTC. Leases are compared with this clock and no other.

    SQLite lives in this process, so its clock is ours.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now.astimezone(UTC)


def is_conflict(error: DBAPIError) -> bool:
    """Whether a transaction failed for another's sake alone: serialization or deadlock."""
    return getattr(error.orig, "sqlstate", None) in _CONFLICTS


def is_busy(error: DBAPIError) -> bool:
    """Whether SQLite waited for another writer until its patience was over."""
    return _sqlite_code(error) & 0xFF == _SQLITE_BUSY


def is_disk_full(error: DBAPIError) -> bool:
    """Whether the database found no room on its disk."""
    code = _sqlite_code(error)
    full = code & 0xFF == _SQLITE_FULL or code == _SQLITE_SHMSIZE
    return full or getattr(error.orig, "sqlstate", None) == _DISK_FULL


def _commit(session: Session) -> None:
    try:
        session.commit()
    except DBAPIError as error:
        # SQLAlchemy takes a transaction whose COMMIT failed for over; on SQLite it may still be open.
        session.invalidate()
        if _is_taken_back(error):
            raise
        raise CommitUnknownError("COMMIT", None, error.orig or error) from error


def _is_taken_back(error: DBAPIError) -> bool:
    """Whether the database itself answered a COMMIT, and with no."""
    state = getattr(error.orig, "sqlstate", None) or ""
    if state:
        return state[:2] in _TAKEN_BACK_CLASSES and state != _UNKNOWN
    return _sqlite_code(error) & 0xFF in (_SQLITE_BUSY, _SQLITE_FULL, _SQLITE_CONSTRAINT)


def _sqlite_code(error: DBAPIError) -> int:
    return getattr(error.orig, "sqlite_errorcode", None) or 0
