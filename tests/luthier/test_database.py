"""SQLite as several processes may use it: no update is lost, readers do not wait."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from luthier import postgres, schema
from luthier.database import Database, clock, is_busy
from luthier.errors import LuthierError
from luthier.sqlite import wal_is_safe
from luthier.tables import Leader


@pytest.fixture
def counter(database: Database) -> Database:
    """A database with one row to count in."""
    with database.transaction() as session:
        session.add(Leader(name="counter", epoch=0))
    return database


def _count(database: Database, times: int) -> None:
    for _ in range(times):
        with database.transaction() as session:
            row = session.scalars(select(Leader).with_for_update()).one()
            row.epoch += 1


def _write_and_fail(database: Database) -> None:
    with database.transaction() as session:
        session.get_one(Leader, "counter").epoch = 5
        session.flush()
        1 / 0  # noqa: B018


def test_read_and_write_in_one_transaction_loses_nothing(counter: Database) -> None:
    threads = [threading.Thread(target=_count, args=(counter, 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with counter.reading() as session:
        assert session.get_one(Leader, "counter").epoch == 80


def test_a_reader_does_not_wait_for_a_writer(counter: Database) -> None:
    with counter.transaction() as writer:
        writer.get_one(Leader, "counter").epoch = 5
        writer.flush()
        with counter.reading() as reader:
            assert reader.get_one(Leader, "counter").epoch == 0


def test_an_exception_takes_everything_back(counter: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(counter)
    with counter.reading() as session:
        assert session.get_one(Leader, "counter").epoch == 0


def test_a_writer_that_waits_in_vain_is_told_and_holds_up_nobody(sqlite_url: str) -> None:
    impatient = Database(sqlite_url, busy_timeout_seconds=0.1)
    with impatient.transaction() as session:
        session.add(Leader(name="counter", epoch=1))
        session.flush()
        with pytest.raises(OperationalError) as refused:
            _count(impatient, 1)
    assert is_busy(refused.value)
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(impatient)
    for _ in range(2):
        _count(impatient, 1)
    with impatient.reading() as session:
        assert session.get_one(Leader, "counter").epoch == 3
    impatient.close()


def test_the_clock_is_aware(counter: Database) -> None:
    with counter.reading() as session:
        assert clock(session).utcoffset() is not None


@pytest.mark.parametrize(
    ("version", "safe"),
    [((3, 40, 1), False), ((3, 44, 6), True), ((3, 50, 7), True), ((3, 51, 2), False), ((3, 53, 4), True)],
)
def test_write_ahead_log_only_where_it_is_safe(version: tuple[int, int, int], safe: bool) -> None:
    assert wal_is_safe(version) is safe


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_database_on_a_network_file_system_is_refused_before_a_file_is_made(
    tmp_path: Path, kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/root rw\n2 1 0:2 / {tmp_path} rw - {kind} server rw\n")
    database = Database(f"sqlite:///{tmp_path / 'luthier.db'}", mounts=mounts)
    with pytest.raises(LuthierError, match=f"{kind}.*LUTHIER_DATABASE_URL"):
        schema.current_revision(database)
    assert not (tmp_path / "luthier.db").exists()
    database.close()


def test_a_link_to_a_network_file_system_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/root rw\n2 1 0:2 / {tmp_path}/far rw - nfs4 server rw\n")
    database = Database(f"sqlite:///{tmp_path / 'near' / 'luthier.db'}", mounts=mounts)
    with pytest.raises(LuthierError, match="nfs4"):
        schema.current_revision(database)
    database.close()


def test_commits_are_flushed_and_the_log_is_ahead(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    names = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "wal_autocheckpoint")
    with database.reading() as session:
        found = [session.connection().exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    database.close()
    assert found == ["wal", 2, 1, 0, 1000]


def test_a_connection_that_was_lost_while_it_lay_is_replaced(postgres_url: str) -> None:
    engine = postgres.make_engine(postgres_url, trusted_seconds=0)
    with engine.connect() as one, engine.connect() as two:
        pids = [each.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() for each in (one, two)]
    with engine.connect() as other:
        other.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with engine.connect() as again:
            assert again.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() not in pids
    engine.dispose()
