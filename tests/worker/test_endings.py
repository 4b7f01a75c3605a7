"""How children end that do not end well, and what becomes of their jobs: real processes, both databases."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sqlalchemy.exc import OperationalError

from luthier import repository
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import control, recording, runs
from luthier.status import BlockedOn, Queue, State
from luthier.tables import Job, Run
from tests.waiting import later, wait_for
from worker import process_tree
from worker.agent import Agent

MakeAgent = Callable[..., Agent]
JobOf = Callable[[str], Job]
RunOf = Callable[[str], Run]


@pytest.fixture
def worker_database_url(sqlite_or_long_url: str) -> str:
    """Each kind of database, in the long form of the tests."""
    return sqlite_or_long_url


@pytest.fixture
def run_of(installation: Installation) -> RunOf:
    """The newest run of a job."""

    def read(job_id: str) -> Run:
        with installation.database.reading() as session:
            return repository.list_runs(session, job_id)[-1]

    return read


def _ask(installation: Installation, ask: Callable[..., object], job_id: str) -> None:
    with installation.database.transaction() as session:
        ask(session, session.get_one(Job, job_id), now=clock(session))


def test_a_second_sigterm_cuts_a_cancel_short(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf, run_of: RunOf
) -> None:
    thread = later(
        lambda: wait_for(lambda: job_of(prepared_job).phase == "training"),
        lambda: _ask(installation, control.request_cancel, prepared_job),
    )
    make_agent(Queue.TRAIN, "endless step", cancel_grace_seconds=0.3, stop_grace_seconds=600).drain()
    thread.join()
    run = run_of(prepared_job)
    assert (job_of(prepared_job).state, run.outcome, run.exit_code) == (State.CANCELLED, "cancelled", 85)


def test_a_pause_saves_frees_the_device_and_goes_on_from_there(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf, run_of: RunOf
) -> None:
    thread = later(
        lambda: wait_for(lambda: job_of(prepared_job).phase == "training"),
        lambda: _ask(installation, control.request_pause, prepared_job),
    )
    make_agent(Queue.TRAIN, "wait").drain()
    thread.join()
    assert (job_of(prepared_job).state, run_of(prepared_job).outcome) == (State.PAUSED, "paused")
    _ask(installation, control.resume, prepared_job)
    make_agent(Queue.TRAIN, "done").drain()
    assert (job_of(prepared_job).state, run_of(prepared_job).from_step) == (State.SUCCEEDED, 3)


def test_a_child_killed_at_the_end_of_its_grace_was_stopped_and_did_not_crash(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf, run_of: RunOf
) -> None:
    agent = make_agent(Queue.TRAIN, "stubborn", stop_grace_seconds=0.2)
    thread = later(lambda: wait_for(lambda: job_of(prepared_job).state == State.RUNNING), agent.stopping.set)
    agent.drain()
    thread.join()
    job, run = job_of(prepared_job), run_of(prepared_job)
    assert (job.state, run.outcome, run.exit_code) == (State.QUEUED, "stopped", -signal.SIGKILL)
    assert (job.infra_restarts, job.no_progress_deaths) == (0, 0)


def test_a_run_without_progress_is_hung_and_its_log_tells_where_it_stood(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf, run_of: RunOf
) -> None:
    make_agent(Queue.TRAIN, "hangs", hang_seconds=0.5, max_deaths=1).drain()
    job, run = job_of(prepared_job), run_of(prepared_job)
    assert (job.state, job.error_code, run.outcome) == (State.QUARANTINED, "process_hung", "hung")
    log = installation.storage.path(f"{prepared_job}/e0001/log.txt").read_text()
    assert "Fatal Python error: Aborted" in log
    assert "in wait" in log


def test_a_stopped_process_is_hung(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf, run_of: RunOf
) -> None:
    def stop() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        os.kill(run_of(prepared_job).pid or 0, signal.SIGSTOP)

    thread = later(stop)
    make_agent(Queue.TRAIN, "wait", hang_seconds=1, max_deaths=1).drain()
    thread.join()
    assert run_of(prepared_job).outcome == "hung"


@pytest.mark.parametrize("behaviour", ["loads", "evaluates"])
def test_work_that_takes_longer_than_a_hang_goes_on(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf, behaviour: str
) -> None:
    make_agent(Queue.TRAIN, behaviour, hang_seconds=1.5).drain()
    assert job_of(prepared_job).state == State.SUCCEEDED


def test_a_child_that_says_nothing_is_ended(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf, run_of: RunOf
) -> None:
    make_agent(Queue.TRAIN, "mute", start_timeout_seconds=0.5, max_deaths=1).drain()
    assert (job_of(prepared_job).error_code, run_of(prepared_job).outcome) == ("process_hung", "hung")
    assert "reported nothing" in (run_of(prepared_job).reason or "")


def test_a_child_that_takes_too_much_memory_is_ended_and_the_limit_is_named(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf, run_of: RunOf
) -> None:
    make_agent(Queue.TRAIN, "hungry", max_host_memory_bytes=150 << 20).drain()
    job = job_of(prepared_job)
    assert (job.state, job.error_code) == (State.FAILED, "out_of_host_memory")
    assert run_of(prepared_job).outcome == "host_oom"
    assert "LUTHIER_MAX_HOST_MEMORY_BYTES" in (job.error_message or "")


def test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_a_crash(
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    run_of: RunOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter(range(100))
    monkeypatch.setattr(process_tree, "killed_for_memory_count", lambda: next(counts))

    def kill() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        os.kill(run_of(prepared_job).pid or 0, signal.SIGKILL)

    agent = make_agent(Queue.TRAIN, "wait", max_infra_restarts=1)
    thread = later(kill)
    agent.drain()
    thread.join()
    assert job_of(prepared_job).error_code == "out_of_host_memory"


def test_a_daemon_that_a_child_leaves_is_gone_before_the_job_has_ended(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf, tmp_path: Path
) -> None:
    make_agent(Queue.TRAIN, "daemon").drain()
    assert job_of(prepared_job).state == State.SUCCEEDED
    pid = int((tmp_path / "daemon.pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_full_disk_blocks_the_job_without_using_a_budget(
    make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "disk full").drain()
    job = job_of(prepared_job)
    assert (job.state, job.blocked_on) == (State.BLOCKED, BlockedOn.DISK)
    assert (job.infra_restarts, job.user_failures) == (0, 0)


@pytest.mark.parametrize(
    ("number", "state", "checkpoints"),
    [(errno.ENOSPC, State.BLOCKED, 0), (errno.EIO, State.SUCCEEDED, 0)],
)
def test_a_checkpoint_that_cannot_be_stored_blocks_on_a_full_disk_and_else_does_not_count(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    state: State,
    checkpoints: int,
) -> None:
    put_folder = type(installation.storage).put_folder

    def failing(storage: object, source: Path, key: str) -> object:
        if "checkpoints" in key:
            raise OSError(number, os.strerror(number))
        return put_folder(storage, source, key)

    monkeypatch.setattr(type(installation.storage), "put_folder", failing)
    make_agent(Queue.TRAIN, "done").drain()
    assert job_of(prepared_job).state == state
    with installation.database.reading() as session:
        assert len(repository.all_checkpoints(session, prepared_job)) == checkpoints


def test_a_run_whose_database_is_away_for_too_long_ends_and_publishes_nothing(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    run_of: RunOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The child stops at SIGTERM and saves, but nobody reads that any more."""

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("UPDATE", None, Exception("the database is away"))

    def go_away() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        monkeypatch.setattr(runs, "heartbeat", fail)
        monkeypatch.setattr(runs, "desired_state", fail)
        monkeypatch.setattr(recording, "record_events", fail)

    thread = later(go_away)
    make_agent(Queue.TRAIN, "wait", self_fence_seconds=0.5, heartbeat_seconds=0.1).drain()
    thread.join()
    run = run_of(prepared_job)
    with installation.database.reading() as session:
        assert repository.all_checkpoints(session, prepared_job) == []
    assert (job_of(prepared_job).state, run.outcome) == (State.RUNNING, None)
    assert not psutil.pid_exists(run.pid or 0)
