"""The dispatcher's rounds, with time passed in, on both databases."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from luthier.database import clock
from luthier.installation import Installation
from luthier.service import endings
from luthier.service.leadership import LEADER, LeadershipLostError
from luthier.service.retries import Ending, Limits
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.tables import File, Job, JobEvent, Leader, Outbox, Project
from tests.factories import claim, create_file, create_job, create_prepared_job
from tests.waiting import wait_for
from worker.dispatcher import Dispatcher
from worker.relay import Relay
from worker.ringing import DoorbellSender
from worker.seat import Seat

_SCRIPT = Path(__file__).with_name("stopped_dispatcher.py")
_LEASE_SECONDS = 20.0


@pytest.fixture
def worker_database_url(database_url: str) -> str:
    """All of this on both databases."""
    return database_url


@pytest.fixture
def lost_job(installation: Installation) -> str:
    """A job whose worker was lost long ago."""
    return _lose(installation, 1)[0]


@pytest.fixture
def calm(installation: Installation) -> Dispatcher:
    """A dispatcher that has led for longer than a lease, by time 1000."""
    dispatcher = Dispatcher(installation, None, "a")
    dispatcher.tick(0.0)
    dispatcher.tick(1000.0)
    return dispatcher


def _lose(installation: Installation, count: int) -> list[str]:
    with installation.database.transaction() as session:
        jobs = []
        for number in range(count):
            create_job(session, f"ftjob-{number}", model="tiny")
            taken = claim(session, Queue.CPU)
            assert taken is not None
            jobs.append(taken.job.id)
        _expire(session)
    return jobs


def _expire(session: object) -> None:
    hour_ago = clock(session) - timedelta(hours=1)  # type: ignore[arg-type]
    session.execute(  # type: ignore[attr-defined]
        update(Job).values(lease_expires_at=hour_ago).where(Job.lease_owner.is_not(None))
    )


def _states(installation: Installation, job_ids: list[str]) -> set[str]:
    with installation.database.reading() as session:
        return set(session.scalars(select(Job.state).where(Job.id.in_(job_ids))))


def test_a_new_leader_takes_nothing_back_for_one_lease(installation: Installation, lost_job: str) -> None:
    """F7: agent and dispatcher were killed; a dispatcher that starts later is careful, then takes back."""
    dispatcher = Dispatcher(installation, None, "a")
    for at in (1000.0, 1000.0 + _LEASE_SECONDS - 1):
        dispatcher.tick(at)
        assert _states(installation, [lost_job]) == {State.STARTING}
    dispatcher.tick(1000.0 + _LEASE_SECONDS + installation.settings.sweep_seconds)
    assert _states(installation, [lost_job]) == {State.QUEUED}


def test_only_the_leader_works(installation: Installation, lost_job: str) -> None:
    Dispatcher(installation, None, "a").tick(1000.0)
    second = Dispatcher(installation, None, "b")
    second.tick(1000.0)
    second.tick(9999.0)
    assert _states(installation, [lost_job]) == {State.STARTING}


def test_many_leases_are_taken_back_only_when_they_are_lost_a_lease_later(
    installation: Installation, calm: Dispatcher
) -> None:
    jobs = _lose(installation, 5)
    calm.tick(1100.0)
    assert _states(installation, jobs) == {State.STARTING}
    calm.tick(1100.0 + _LEASE_SECONDS)
    assert _states(installation, jobs) == {State.QUEUED}


@pytest.mark.parametrize("count", [1, 5])
def test_after_an_outage_nothing_is_taken_back_in_mass_or_at_once(
    installation: Installation, calm: Dispatcher, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """F17: the database was away, and all leases ran out meanwhile. Who renews in time is not touched."""
    jobs = _lose(installation, count)
    now = 1100.0
    with monkeypatch.context() as outage:
        outage.setattr(installation.database, "reading", _unreachable)
        calm._tick_guarded(now)
    now += installation.settings.sweep_seconds
    calm._tick_guarded(now)
    assert _states(installation, jobs) == {State.STARTING}
    with installation.database.transaction() as session:
        alive = clock(session) + timedelta(seconds=_LEASE_SECONDS)
        session.execute(update(Job).values(lease_expires_at=alive).where(Job.id.in_(jobs[1:])))
    now += _LEASE_SECONDS + installation.settings.sweep_seconds
    calm._tick_guarded(now)
    assert _states(installation, jobs[:1]) == {State.QUEUED}
    assert _states(installation, jobs[1:]) == ({State.STARTING} if jobs[1:] else set())


def _unreachable() -> None:
    raise OperationalError("SELECT 1", None, Exception("server closed the connection"))


def test_a_pause_of_the_leader_itself_is_an_outage(
    installation: Installation, calm: Dispatcher, lost_job: str
) -> None:
    """Its own lease ran out by the database's clock, as after a stop, a sleep of the machine or a jump."""
    with installation.database.transaction() as session:
        session.get_one(Leader, LEADER).expires_at = clock(session) - timedelta(seconds=1)
    calm.tick(1100.0)
    assert _states(installation, [lost_job]) == {State.STARTING}
    calm.tick(1100.0 + _LEASE_SECONDS)
    assert _states(installation, [lost_job]) == {State.QUEUED}
    with installation.database.reading() as session:
        assert session.get_one(Leader, LEADER).epoch == 2


def test_a_job_goes_on_in_the_first_round_after_its_wait(
    installation: Installation, calm: Dispatcher
) -> None:
    with installation.database.transaction() as session:
        create_job(session, model="tiny")
        taken = claim(session, Queue.CPU)
        assert taken is not None
        endings.requeue_run(
            session, taken.lease, ending=Ending.UNAVAILABLE, message="", exit_code=69,
            limits=Limits(5, 5, 3), jitter=0.5, now=clock(session),
        )  # fmt: skip
    calm.tick(1000.1)
    assert _states(installation, [taken.job.id]) == {State.RETRY_WAIT}
    with installation.database.transaction() as session:
        session.execute(update(Job).values(not_before=clock(session)).where(Job.id == taken.job.id))
    calm.tick(1000.2)
    assert _states(installation, [taken.job.id]) == {State.QUEUED}


def test_between_renewals_an_idle_round_writes_nothing(installation: Installation, calm: Dispatcher) -> None:
    def expires_at() -> object:
        with installation.database.reading() as session:
            return session.get_one(Leader, LEADER).expires_at

    before = expires_at()
    for number in range(10):
        calm.tick(1000.0 + 0.5 * number)
    assert expires_at() == before
    calm.tick(1000.0 + _LEASE_SECONDS / 3)
    assert expires_at() != before


@pytest.fixture
def stopped(installation: Installation, settings: Settings, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A dispatcher that led, was stopped past its lease, followed by another, and continued.

    Asks it to do one of its parts, and gives its answer.
    """
    command = [sys.executable, "-P", str(_SCRIPT), str(settings.database_url), str(settings.data), "1.5"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "leads\n"
    process.send_signal(signal.SIGSTOP)
    second = Seat(installation, "second")
    wait_for(lambda: second.keep(0.0))
    process.send_signal(signal.SIGCONT)

    def ask(part: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        print(part, file=process.stdin, flush=True)
        return process.stdout.readline().strip()

    yield ask
    process.kill()
    process.communicate()


def test_a_leader_that_was_stopped_and_followed_writes_nothing_more(
    installation: Installation, stopped: Callable[[str], str]
) -> None:
    """F8, with a real process that is stopped and continued."""
    with installation.database.transaction() as session:
        create_job(session, "ftjob-1", model="tiny")
        create_file(session, "file-old", expires_at=clock(session) - timedelta(hours=1))
    with installation.storage.receive() as incoming:
        installation.storage.keep(incoming, "files/file-gone")
    assert [stopped(part) for part in ("relay", "rows", "orphans")] == ["done", "lost", "lost"]
    with installation.database.reading() as session:
        assert session.scalar(select(func.count()).where(Outbox.sent_at.is_(None))) == 1
        assert session.get(File, "file-old") is not None
    assert installation.storage.find_size("files/file-gone") == 0


def test_a_leader_that_is_followed_in_the_middle_of_a_round_marks_nothing(
    installation: Installation,
) -> None:
    """F8, where the other one takes over between the relay's look and its mark."""
    with installation.database.transaction() as session:
        create_job(session, "ftjob-1", model="tiny")
    seat = Seat(installation, "a")
    assert seat.keep(0.0)

    class Slow(DoorbellSender):
        def send(self, messages: object) -> set[int]:  # noqa: ARG002
            with installation.database.transaction() as session:
                leader = session.get_one(Leader, LEADER)
                leader.holder, leader.epoch = "b", leader.epoch + 1
            return set()

    with pytest.raises(LeadershipLostError):
        Relay(installation, Slow(installation.settings, None), seat).relay()
    with installation.database.reading() as session:
        assert session.scalar(select(func.count()).where(Outbox.sent_at.is_(None))) == 1


def test_a_sweep_that_comes_too_late_takes_nothing_back(
    installation: Installation, calm: Dispatcher, lost_job: str
) -> None:
    """F8: the leader row has another holder, which this one has not heard of yet."""
    with installation.database.transaction() as session:
        leader = session.get_one(Leader, LEADER)
        leader.holder, leader.epoch = "b", leader.epoch + 1
        leader.expires_at = clock(session) + timedelta(hours=1)
    with pytest.raises(LeadershipLostError):
        calm._take_back(1000.0)
    assert _states(installation, [lost_job]) == {State.STARTING}
    calm.tick(1100.0)
    with installation.database.reading() as session:
        requeued = select(func.count()).where(JobEvent.kind == "job_requeued")
        assert session.scalar(requeued) == 0


def test_a_job_of_a_project_without_room_in_storage_waits_and_goes_on(installation: Installation) -> None:
    with installation.database.transaction() as session:
        job_id = create_prepared_job(session, model="tiny").id
        session.execute(update(Project).values(quotas={"storage_bytes": 1}))
    dispatcher = Dispatcher(installation, None, "a")
    dispatcher.tick(0.0)
    with installation.database.transaction() as session:
        assert session.get_one(Job, job_id).blocked_on == "quota"
        session.execute(update(Project).values(quotas={"storage_bytes": 1 << 40}))
    dispatcher.tick(1000.0)
    with installation.database.reading() as session:
        assert session.get_one(Job, job_id).state == State.QUEUED
