"""An agent as a process of its own: told to make room, killed, and followed by the next one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import update

from luthier import repository, schema
from luthier.database import Database
from luthier.installation import Installation
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.tables import Job, Run, Worker
from tests.factories import create_job
from tests.waiting import wait_for
from worker.agent import Agent

MakeAgent = Callable[..., Agent]
JobOf = Callable[[str], Job]
StartAgent = Callable[..., subprocess.Popen[bytes]]

_SCRIPT = Path(__file__).with_name("scripted_child.py")
_TIMES = ("lease_seconds", "heartbeat_seconds", "self_fence_seconds", "watch_seconds", "stop_grace_seconds")
_AGENT = """
import signal, sys, threading
from luthier.devices import Device
from luthier.installation import open_installation
from luthier.settings import Settings
from luthier.status import Queue
from worker.agent import Agent
from worker.process_tree import adopt_orphans

queue, behaviour, script = sys.argv[1:]
adopt_orphans()
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
Agent(
    open_installation(Settings()), Queue(queue), Device("cpu", "CPU"), host="host", instance_id="process",
    stopping=stopping,
    child_command=lambda kind, folder: [sys.executable, "-P", script, behaviour, str(folder)],
).serve(0.05)
"""


@pytest.fixture
def worker_database_url(sqlite_or_long_url: str) -> str:
    """Each kind of database, in the long form of the tests."""
    return sqlite_or_long_url


@pytest.fixture
def start_agent(settings: Settings) -> Iterator[StartAgent]:
    """Starts an agent of the train queue; `fields` are settings of its own."""
    started = []

    def start(behaviour: str, **fields: object) -> subprocess.Popen[bytes]:
        own = {name: getattr(settings, name) for name in _TIMES}
        own |= {"data_dir": settings.data, "database_url": settings.database, "model_dir": settings.models}
        environment = {f"LUTHIER_{name.upper()}": str(value) for name, value in (own | fields).items()}
        command = [sys.executable, "-P", "-c", _AGENT, Queue.TRAIN, behaviour, str(_SCRIPT)]
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        started.append(subprocess.Popen(command, env=os.environ | environment | path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _run(database: Database, job_id: str) -> Run:
    with database.reading() as session:
        return repository.list_runs(session, job_id)[-1]


def _wait_for_training(job_of: JobOf, job_id: str) -> None:
    wait_for(lambda: job_of(job_id).phase == "training")


def test_an_agent_told_twice_to_make_room_gives_the_job_back_in_front_and_for_free(
    installation: Installation, start_agent: StartAgent, prepared_job: str, job_of: JobOf
) -> None:
    agent = start_agent("wait", stop_grace_seconds=20)
    _wait_for_training(job_of, prepared_job)
    before = job_of(prepared_job).queue_key
    agent.terminate()
    agent.terminate()
    assert agent.wait(20) == 0
    job, run = job_of(prepared_job), _run(installation.database, prepared_job)
    assert (job.state, run.outcome, run.exit_code) == (State.QUEUED, "stopped", 85)
    assert (job.infra_restarts, job.checkpoint_step, job.queue_key < before) == (0, 3, True)


def test_an_agent_tells_its_states(installation: Installation, start_agent: StartAgent) -> None:
    def state() -> str | None:
        with installation.database.reading() as session:
            found = session.query(Worker).one_or_none()
        return found.state if found else None

    agent = start_agent("done")
    wait_for(lambda: state() == "active")
    agent.terminate()
    agent.wait(20)
    assert state() == "stopped"


@pytest.mark.parametrize("is_draining", [False, True])
def test_a_killed_agent_takes_its_child_along_and_the_next_one_goes_on_at_once(
    installation: Installation,
    start_agent: StartAgent,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    is_draining: bool,
) -> None:
    agent = start_agent("stubborn", stop_grace_seconds=60)
    wait_for(lambda: job_of(prepared_job).state == State.RUNNING)
    child = psutil.Process(_run(installation.database, prepared_job).pid or 0)
    if is_draining:
        agent.terminate()
    agent.kill()
    agent.wait(20)
    assert psutil.wait_procs([child], timeout=10)[1] == []
    follower = make_agent(Queue.TRAIN, "done")
    follower.recover()
    assert [path for path in installation.settings.runs.rglob("*") if path.is_file()] == []
    follower.drain()
    with installation.database.reading() as session:
        outcomes = [run.outcome for run in repository.list_runs(session, prepared_job)]
    assert (job_of(prepared_job).state, outcomes) == (State.SUCCEEDED, ["lost", "succeeded"])


def test_a_daemon_of_a_killed_agent_is_ended_before_its_job_goes_on(
    start_agent: StartAgent, make_agent: MakeAgent, prepared_job: str, job_of: JobOf, tmp_path: Path
) -> None:
    agent = start_agent("daemon and wait")
    _wait_for_training(job_of, prepared_job)
    daemon = psutil.Process(int((tmp_path / "daemon.pid").read_text()))
    agent.kill()
    agent.wait(20)
    assert daemon.is_running()
    make_agent(Queue.TRAIN, "done").drain()
    assert job_of(prepared_job).state == State.SUCCEEDED
    assert psutil.wait_procs([daemon], timeout=10)[1] == []


def test_a_start_touches_neither_run_nor_folder_of_an_agent_that_lives(
    installation: Installation,
    start_agent: StartAgent,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """Not of the same place, and not of the same one of another data folder on the host."""
    start_agent("wait")
    _wait_for_training(job_of, prepared_job)
    run = _run(installation.database, prepared_job)
    (tmp_path / "other").mkdir()
    other = make_agent(Queue.TRAIN, "done", data_dir=tmp_path / "other")
    for agent in (make_agent(Queue.TRAIN, "done"), other):
        agent.recover()
        agent.drain()
    assert (job_of(prepared_job).state, job_of(prepared_job).lease_epoch) == (State.RUNNING, run.epoch)
    assert psutil.pid_exists(run.pid or 0)
    assert (settings.runs / prepared_job / "e0001" / "spec.json").exists()


def test_what_ran_before_the_machine_started_anew_is_taken_back_without_the_lock(
    installation: Installation,
    start_agent: StartAgent,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
) -> None:
    start_agent("wait")
    _wait_for_training(job_of, prepared_job)
    agent = make_agent(Queue.TRAIN, "done")
    agent.recover()
    assert job_of(prepared_job).state == State.RUNNING
    with installation.database.transaction() as session:
        session.execute(update(Run).where(Run.job_id == prepared_job).values(boot_id="before"))
    agent.recover()
    assert job_of(prepared_job).state == State.QUEUED


def test_an_agent_waits_for_a_schema_that_it_can_work_with(
    settings: Settings, start_agent: StartAgent, tmp_path: Path
) -> None:
    """It does not end, to be started again and again."""
    url = f"sqlite:///{tmp_path / 'late.db'}"
    agent = start_agent("done", database_url=url)
    with pytest.raises(subprocess.TimeoutExpired):
        agent.wait(2)
    database = Database(url)
    schema.upgrade(database)

    def is_there() -> bool:
        with database.reading() as session:
            return session.query(Worker).count() == 1

    wait_for(is_there)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0
    database.close()


def test_a_flood_of_a_gigabyte_leaves_the_agent_and_the_job_alone(
    installation: Installation, make_agent: MakeAgent, job_of: JobOf
) -> None:
    with installation.database.transaction() as session:
        job_id = create_job(session, model="tiny").id
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "gigabyte", hang_seconds=60).drain()
    log = installation.storage.path(f"{job_id}/e0001/log.txt")
    assert job_of(job_id).state == State.SUCCEEDED
    assert 0 < log.stat().st_size <= installation.settings.max_log_bytes
