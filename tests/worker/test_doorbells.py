"""Doorbells as a real Celery worker hears them, from a real broker that dies, forgets or repeats itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from luthier.database import clock
from luthier.errors import ExitCode
from luthier.installation import Installation
from luthier.queue import TASK_NAME, make_sender
from luthier.service import doorbells
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.tables import Job, JobEvent, Outbox, Run
from tests.brokers import Broker
from tests.factories import create_job
from tests.waiting import wait_for
from worker.agent import Agent
from worker.relay import Relay
from worker.ringing import DoorbellSender
from worker.seat import Seat

_SCRIPT = Path(__file__).with_name("doorbell_worker.py")
Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(settings: Settings, broker: Broker, tmp_path: Path) -> Iterator[Start]:
    """Starts Celery workers that end with the test."""
    given = {
        name: value for name, value in settings.model_dump().items() if name in settings.model_fields_set
    }
    environment = os.environ | {f"LUTHIER_{name.upper()}": str(value) for name, value in given.items()}
    # Left over from a Celery that was set up otherwise; it must not choose how our worker stops.
    environment |= {"LUTHIER_REDIS_URL": broker.url, "REMAP_SIGTERM": "SIGQUIT"}
    started: list[subprocess.Popen[bytes]] = []

    def start(behaviour: str) -> "subprocess.Popen[bytes]":
        with (tmp_path / "worker.log").open("ab") as log:
            command = [sys.executable, "-P", str(_SCRIPT), behaviour]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path))
        wait_for(broker.has_listener)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def ring(installation: Installation, broker: Broker) -> Callable[[], None]:
    """Sends what the outbox holds, as the dispatcher does."""
    seat = Seat(installation, "leader")
    relay = Relay(installation, DoorbellSender(installation.settings, make_sender(broker.url)), seat)

    def ring() -> None:
        seat.keep(time.monotonic())
        with installation.database.transaction() as session:
            for message in session.scalars(select(Outbox)):
                message.next_at = message.created_at
        assert relay.relay()

    return ring


def _submit(installation: Installation, job_id: str) -> str:
    """Id of the preparation of a new job."""
    with installation.database.transaction() as session:
        create_job(session, job_id, model="tiny")
    return f"work-{job_id}"


def _wait_for(installation: Installation, job_id: str, state: State) -> Job:
    def found() -> bool:
        with installation.database.reading() as session:
            jobs[0:] = [session.get_one(Job, job_id)]
        return jobs[0].state == state

    jobs: list[Job] = []
    wait_for(found)
    return jobs[0]


def _successes(installation: Installation, job_id: str) -> int:
    with installation.database.reading() as session:
        query = select(func.count()).where(JobEvent.job_id == job_id, JobEvent.kind == "job_succeeded")
        return session.scalar(query) or 0


def test_a_running_job_does_not_notice_that_the_broker_dies(
    installation: Installation, broker: Broker, start: Start, ring: Callable[[], None], tmp_path: Path
) -> None:
    start(f"until {tmp_path / 'open'}")
    first = _submit(installation, "ftjob-1")
    ring()
    before = _wait_for(installation, first, State.RUNNING)
    broker.kill()
    broker.restart()
    (tmp_path / "open").touch()
    after = _wait_for(installation, first, State.SUCCEEDED)
    assert (after.run_count, after.lease_epoch) == (1, before.lease_epoch)
    second = _submit(installation, "ftjob-2")
    ring()
    assert _wait_for(installation, second, State.SUCCEEDED).run_count == 1


def test_a_hundred_doorbells_are_one_run(installation: Installation, broker: Broker, start: Start) -> None:
    start("done")
    job_id = _submit(installation, "ftjob-1")
    sender = make_sender(broker.url)
    for _ in range(100):
        sender.send_task(TASK_NAME, args=[job_id], queue=str(Queue.CPU))
    job = _wait_for(installation, job_id, State.SUCCEEDED)
    wait_for(lambda: broker.count_waiting("cpu") == 0)
    assert (job.run_count, _successes(installation, job_id)) == (1, 1)


def test_a_doorbell_that_dies_with_its_worker_is_rung_again(
    installation: Installation, broker: Broker, start: Start, ring: Callable[[], None]
) -> None:
    """The window of BRPOP: the server has given the message away, and the worker never reads it."""
    worker = start("done")
    worker.send_signal(signal.SIGSTOP)
    job_id = _submit(installation, "ftjob-1")
    ring()
    worker.kill()
    worker.wait()
    assert broker.count_waiting("cpu") == 0
    start("done")
    with installation.database.transaction() as session:
        assert doorbells.ring_forgotten(session, older_than_seconds=-3600, listeners={}, now=clock(session))
    ring()
    assert _wait_for(installation, job_id, State.SUCCEEDED).run_count == 1


def test_memory_that_runs_out_in_a_task_does_not_end_the_worker(
    installation: Installation, start: Start, ring: Callable[[], None]
) -> None:
    worker = start("memory error")
    _submit(installation, "ftjob-1")
    ring()
    job_id = _submit(installation, "ftjob-2")
    ring()
    _wait_for(installation, job_id, State.SUCCEEDED)
    assert worker.poll() is None


def test_a_worker_that_is_told_to_stop_saves_and_gives_the_job_back(
    installation: Installation, start: Start, ring: Callable[[], None]
) -> None:
    worker = start("wait")
    job_id = _submit(installation, "ftjob-1")
    ring()
    _wait_for(installation, job_id, State.RUNNING)
    worker.terminate()
    worker.wait(30)
    _wait_for(installation, job_id, State.QUEUED)
    with installation.database.reading() as session:
        run = session.get_one(Run, (job_id, 1))
    assert (run.outcome, run.exit_code, worker.returncode) == ("stopped", ExitCode.STOPPED, 0)


def test_work_goes_on_by_polling_while_the_broker_is_away(
    installation: Installation, broker: Broker, make_agent: Callable[..., Agent]
) -> None:
    seat = Seat(installation, "leader")
    relay = Relay(installation, DoorbellSender(installation.settings, make_sender(broker.url)), seat)
    assert seat.keep(0.0)
    broker.kill()
    try:
        job_id = _submit(installation, "ftjob-1")
        assert not relay.relay()
        make_agent(Queue.CPU, "done").drain()
    finally:
        broker.restart()
    assert _wait_for(installation, job_id, State.SUCCEEDED).run_count == 1
