"""Full disks and what the service does about them: a small real one where this machine lets a user mount it.

Everywhere, on both databases, the marks are put above or below the room that there is.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from luthier import disk
from luthier.database import Database, clock
from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.service import endings
from luthier.status import BlockedOn, Queue, State
from luthier.tables import Job, JobEvent
from tests.factories import claim, create_job, create_prepared_job
from worker.agent import Agent
from worker.disk_watch import DiskWatch
from worker.dispatcher import Dispatcher
from worker.seat import Seat

_MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]
_SCRIPT = Path(__file__).with_name("on_a_small_disk.py")
_NEVER = 1 << 60


@pytest.fixture
def worker_database_url(database_url: str) -> str:
    """All of this on both databases."""
    return database_url


@pytest.fixture
def worker_storage_fields() -> dict[str, Any]:
    """Marks that any disk is above of."""
    return {"low_disk_bytes": 1, "enough_disk_bytes": 2}


@pytest.fixture
def seat(installation: Installation) -> Seat:
    seat = Seat(installation, "a")
    assert seat.keep(0.0)
    return seat


def _with_marks(installation: Installation, *, low: int, enough: int) -> Installation:
    marks = {"low_disk_bytes": low, "enough_disk_bytes": enough}
    return replace(installation, settings=installation.settings.model_copy(update=marks))


@pytest.fixture
def full(installation: Installation) -> Installation:
    """The installation on a disk without room."""
    return _with_marks(installation, low=_NEVER, enough=_NEVER)


@pytest.fixture
def sqlite_installation(installation: Installation, tmp_path: Path) -> Iterator[Installation]:
    """The same, with a database that holds room back."""
    database = Database(f"sqlite:///{tmp_path / 'reserve.db'}", reserve_bytes=1 << 20)
    yield replace(installation, database=database)
    database.close()


def _block(installation: Installation, job_id: str = "ftjob-1") -> str:
    """A job whose run found the disk full, a while ago."""
    with installation.database.transaction() as session:
        create_prepared_job(session, job_id, model="tiny")
        run = claim(session)
        assert run is not None
        endings.block_run(
            session,
            run.lease,
            blocked_on=BlockedOn.DISK,
            message="disk full",
            exit_code=73,
            now=clock(session) - timedelta(minutes=1),
        )
    return job_id


def _state(installation: Installation, job_id: str) -> str:
    with installation.database.reading() as session:
        return session.get_one(Job, job_id).state


def test_below_the_low_mark_nothing_more_is_stored(installation: Installation, full: Installation) -> None:
    assert (disk.has_room(installation), disk.has_room(full)) == (True, False)
    disk.require_room(installation, 1)
    with pytest.raises(LuthierError) as caught:
        disk.require_room(installation, disk.free_bytes(installation) + 1)
    assert caught.value.code == "disk_full"


def test_a_spent_reserve_is_no_room(sqlite_installation: Installation) -> None:
    installation = sqlite_installation
    assert installation.database.restore_reserve()
    assert disk.has_room(installation)
    installation.database.release_reserve()
    assert not disk.has_room(installation)


def test_blocked_jobs_wait_while_the_disk_is_low_and_go_on_when_there_is_enough(
    installation: Installation, full: Installation, seat: Seat
) -> None:
    job_id = _block(installation)
    DiskWatch(full, seat).look()
    assert _state(installation, job_id) == State.BLOCKED
    DiskWatch(installation, seat).look()
    assert _state(installation, job_id) == State.QUEUED


def test_between_the_marks_blocked_jobs_go_on_waiting(installation: Installation, seat: Seat) -> None:
    job_id = _block(installation)
    DiskWatch(_with_marks(installation, low=1, enough=_NEVER), seat).look()
    assert _state(installation, job_id) == State.BLOCKED


def test_what_waits_for_something_else_is_left_alone(installation: Installation, seat: Seat) -> None:
    job_id = _block(installation)
    with installation.database.transaction() as session:
        session.get_one(Job, job_id).blocked_on = BlockedOn.MODEL
    DiskWatch(installation, seat).look()
    assert _state(installation, job_id) == State.BLOCKED


def test_the_owner_of_a_running_job_is_warned_once(
    installation: Installation, full: Installation, seat: Seat
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, model="tiny")
        create_job(session, "ftjob-queued", model="tiny")
        assert claim(session) is not None
        assert claim(session, Queue.CPU) is not None
    watch = DiskWatch(full, seat)
    for _ in range(3):
        watch.look()
    with installation.database.reading() as session:
        told = session.scalars(select(JobEvent).where(JobEvent.kind == "disk_low")).all()
    assert [(event.job_id, event.level) for event in told] == [("ftjob-1", "warn")]


def test_a_dispatcher_lets_blocked_jobs_go_on_within_a_sweep(installation: Installation) -> None:
    dispatcher = Dispatcher(installation, None, "a")
    dispatcher.tick(0.0)
    job_id = _block(installation)
    assert installation.settings.sweep_seconds <= 60
    dispatcher.tick(installation.settings.sweep_seconds)
    assert _state(installation, job_id) == State.QUEUED


def _can_mount() -> bool:
    try:
        probe = [*_MOUNT, "sh", "-c", "mount -t tmpfs -o size=1m none /tmp"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


# A test that cannot be run is not there, rather than skipped: no machine is to pass for one that showed it.
if _can_mount():

    def test_a_disk_that_is_really_full_is_survived(tmp_path: Path) -> None:
        """P11: states are written, the last checkpoint is whole, and all goes on once there is room."""
        mounting = f'mount -t tmpfs -o size=12m none {tmp_path} && exec "$@"'
        script = [sys.executable, "-P", str(_SCRIPT), str(tmp_path)]
        command = [*_MOUNT, "sh", "-c", mounting, "sh", *script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stdout.split()[-1:]) == (0, ["survived"]), done.stderr + done.stdout


class TestOfAnAgent:
    """What an agent does on a disk without room."""

    @pytest.fixture
    def worker_storage_fields(self) -> dict[str, Any]:
        return {"low_disk_bytes": _NEVER, "enough_disk_bytes": _NEVER + 1}

    def test_it_takes_nothing_on(self, installation: Installation, make_agent: Callable[..., Agent]) -> None:
        with installation.database.transaction() as session:
            create_job(session, model="tiny")
        make_agent(Queue.CPU, "done").drain()
        with installation.database.reading() as session:
            assert set(session.scalars(select(Job.state))) == {State.QUEUED}
