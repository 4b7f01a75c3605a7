"""A full disk below SQLite: the room that is held back lets the state of jobs still be written.

Where this machine lets a user mount a small file system, a real one is filled; everywhere, SQLite's own limit
on pages stands for the disk, and is lifted by as much as the reserve gives up.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from luthier.database import CommitUnknownError, Database, is_disk_full
from luthier.reserve import Reserve

_RESERVE_BYTES = 1 << 20
_MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]


def _can_mount() -> bool:
    try:
        probe = [*_MOUNT, "sh", "-c", "mount -t tmpfs -o size=1m none /tmp"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    database = Database(sqlite_url, reserve_bytes=_RESERVE_BYTES)
    assert database.restore_reserve()
    with database.transaction() as session:
        session.execute(text("CREATE TABLE filler (x)"))
    yield database
    database.close()


def _fill(session: Session) -> None:
    session.execute(text("INSERT INTO filler VALUES (randomblob(200000))"))


def _limit_pages(database: Database) -> None:
    """No page more than there are, as long as the reserve is held."""
    driver = database.engine.raw_connection()
    pages = driver.cursor().execute("PRAGMA page_count").fetchone()[0]
    driver.cursor().execute(f"PRAGMA max_page_count={pages if not database.reserve_is_spent else pages * 2}")
    driver.close()


def test_a_full_disk_gives_up_the_reserve_and_the_write_is_told_apart(database: Database) -> None:
    _limit_pages(database)
    with pytest.raises(OperationalError) as caught, database.transaction() as session:
        _fill(session)
    assert is_disk_full(caught.value)
    assert not isinstance(caught.value, CommitUnknownError)
    assert database.reserve_is_spent
    assert (database.file.with_name("luthier.db.reserve").stat().st_size if database.file else None) == 0


def test_the_next_try_fits_into_what_was_given_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit_pages(database)
    release = database.release_reserve

    def release_and_lift() -> bool:
        released = release()
        _limit_pages(database)
        return released

    monkeypatch.setattr(database, "release_reserve", release_and_lift)
    database.run(_fill)
    with database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM filler")) == 1


def test_the_reserve_is_taken_again_where_there_is_room(database: Database) -> None:
    assert database.release_reserve()
    assert not database.release_reserve()
    assert database.reserve_is_spent
    assert database.restore_reserve()
    assert not database.reserve_is_spent


def test_the_reserve_is_allocated_and_no_hole(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", _RESERVE_BYTES)
    assert reserve.restore()
    found = reserve.path.stat()
    assert (found.st_blocks * 512 >= _RESERVE_BYTES, found.st_mode & 0o777) == (True, 0o600)


def test_a_reserve_for_which_there_is_no_room_is_not_taken(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 1 << 60)
    assert not reserve.restore()
    assert not reserve.path.exists()


_ON_A_SMALL_DISK = f"""
import errno, os, sys
from pathlib import Path
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from luthier import schema
from luthier.database import Database
from luthier.tables import Leader

folder = Path(sys.argv[1])
database = Database(f"sqlite:///{{folder / 'luthier.db'}}", reserve_bytes={_RESERVE_BYTES})
schema.upgrade(database)
assert database.restore_reserve()
with database.transaction() as session:
    session.add(Leader(name="state", epoch=0))
filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
try:
    while os.write(filler, bytes(4096)):
        pass
except OSError as error:
    assert error.errno == errno.ENOSPC
os.close(filler)

def move(session):
    session.get_one(Leader, "state").epoch += 1

steps = 0
for _ in range(50):
    database.run(move)
    steps += 1
assert steps == 50 and database.reserve_is_spent, steps
assert not database.restore_reserve()
(folder / "filler").unlink()
assert database.restore_reserve() and not database.reserve_is_spent
with database.reading() as session:
    assert session.get_one(Leader, "state").epoch == 50
    assert session.scalar(text("PRAGMA integrity_check")) == "ok"
print("written")
"""


def _fill_a_real_disk(tmp_path: Path) -> None:
    mounting = f'mount -t tmpfs -o size=6m none {tmp_path} && exec "$@"'
    command = [*_MOUNT, "sh", "-c", mounting, "sh", sys.executable, "-c", _ON_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "written"), done.stderr


# A test that cannot be run is not there, rather than skipped: no machine is to pass for one that showed it.
if _can_mount():

    def test_states_are_written_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
        _fill_a_real_disk(tmp_path)
