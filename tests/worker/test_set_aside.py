"""Devices that are set aside: after a fault of the GPU, or a process that nothing ends, until a release."""

import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from luthier import repository
from luthier.database import clock
from luthier.devices import Device
from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.service import control, sweep, workers
from luthier.service.retries import Limits
from luthier.status import Queue, State
from luthier.tables import Job, JobEvent, Worker
from tests.waiting import later, wait_for
from worker import agent as agent_module
from worker import process_tree
from worker.agent import Agent

MakeAgent = Callable[..., Agent]
JobOf = Callable[[str], Job]
GPU = Device("GPU-498cc3e4-d0a6-69bb-bae2-cebc46c3cf40", "NVIDIA H100 80GB HBM3", 0, 81559 << 20)
_RECORDED = Path(__file__).parents[1] / "luthier" / "nvidia_smi" / "one.xml"


@pytest.fixture
def worker_database_url(sqlite_or_long_url: str) -> str:
    """Each kind of database, in the long form of the tests."""
    return sqlite_or_long_url


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts an `nvidia-smi` first on the path, and locks of GPUs below the test's folder."""
    monkeypatch.setattr(agent_module, "device_lock_path", lambda device: tmp_path / f"{device}.lock")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def put(script: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)

    put(f"cat {_RECORDED}")
    return put


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """SIGKILL does nothing, as to a process that waits in a broken driver; ends those processes at last."""
    send, spared = process_tree.send_signal, set[int]()

    def send_all_but_kill(pid: int, number: signal.Signals) -> None:
        if number == signal.SIGKILL:
            spared.add(pid)
        else:
            send(pid, number)

    def let_go() -> None:
        for pid in spared:
            send(pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(process_tree, "send_signal", send_all_but_kill)
        yield let_go
    let_go()


def _cancel(installation: Installation, job_id: str) -> None:
    with installation.database.transaction() as session:
        control.request_cancel(session, session.get_one(Job, job_id), now=clock(session))


def _sweep_much_later(installation: Installation) -> list[str]:
    with installation.database.transaction() as session:
        now = clock(session) + timedelta(hours=1)
        return sweep.sweep(session, limits=Limits(5, 5, 3), jitter=0, now=now, at_most=None)


def _close_locks(installation: Installation) -> None:
    """What the kernel does when an agent's process ends."""
    for path in Path("/proc/self/fd").iterdir():
        if path.is_symlink() and path.readlink().is_relative_to(installation.settings.data / "locks"):
            os.close(int(path.name))


def _is_sick(installation: Installation, agent: Agent) -> bool:
    worker = _worker(installation, agent)
    return worker is not None and worker.state == "sick"


def _worker(installation: Installation, agent: Agent) -> Worker | None:
    with installation.database.reading() as session:
        return session.get(Worker, agent.worker_id)


def _release(installation: Installation, name: str) -> None:
    with installation.database.transaction() as session:
        workers.release(session, name)


@pytest.mark.usefixtures("driver")
def test_a_gpu_with_a_fault_is_set_aside_and_the_job_goes_elsewhere(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    agent = make_agent(Queue.TRAIN, "gpu fault", device=GPU)
    agent.drain()
    worker = _worker(installation, agent)
    assert worker is not None
    assert (worker.state, job_of(prepared_job).state) == ("sick", State.QUEUED)
    assert "Uncorrectable ECC error" in (worker.reason or "")
    agent.drain()
    make_agent(Queue.TRAIN, "done", device=GPU).drain()
    assert job_of(prepared_job).run_count == 1
    make_agent(Queue.TRAIN, "done").drain()
    assert job_of(prepared_job).state == State.SUCCEEDED


@pytest.mark.usefixtures("driver")
def test_a_released_gpu_works_again_and_a_job_that_meets_a_fault_everywhere_takes_one_gpu_with_it(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    agent = make_agent(Queue.TRAIN, "gpu fault", device=GPU)
    agent.drain()
    _release(installation, GPU.id)
    agent.drain()
    worker = _worker(installation, agent)
    assert (worker.state if worker else None, job_of(prepared_job).state) == ("active", State.FAILED)
    with pytest.raises(LuthierError, match="is not set aside"):
        _release(installation, GPU.id)


@pytest.mark.usefixtures("driver")
def test_a_fault_that_a_program_can_bring_about_sets_nothing_aside(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    agent = make_agent(Queue.TRAIN, "program fault", device=GPU)
    agent.drain()
    worker = _worker(installation, agent)
    assert worker is None or worker.state != "sick"
    assert job_of(prepared_job).run_count > 1


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.usefixtures("unkillable")
def test_a_process_that_outlives_sigkill_sets_the_device_aside_and_keeps_its_lock(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    agent = make_agent(Queue.TRAIN, "stubborn", stop_grace_seconds=0.1, unkillable_seconds=0.3)
    thread = later(lambda: wait_for(lambda: job_of(prepared_job).state == State.RUNNING), agent.stopping.set)
    agent.drain()
    thread.join()
    worker, job = _worker(installation, agent), job_of(prepared_job)
    assert worker is not None
    assert (worker.state, job.state, job.infra_restarts) == ("sick", State.QUEUED, 1)
    assert "SIGKILL did not end process" in (worker.reason or "")
    _release(installation, agent.worker_id)
    make_agent(Queue.TRAIN, "done").drain()
    assert job_of(prepared_job).run_count == 1


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_cancel_is_not_done_before_a_process_that_outlives_sigkill_is_gone(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    unkillable: Callable[[], None],
) -> None:
    agent = make_agent(Queue.TRAIN, "stubborn", cancel_grace_seconds=0.1, unkillable_seconds=0.3)
    seen: list[Job] = []

    def cancel() -> None:
        wait_for(lambda: job_of(prepared_job).state == State.RUNNING)
        _cancel(installation, prepared_job)
        wait_for(lambda: _is_sick(installation, agent))
        before = job_of(prepared_job)
        wait_for(lambda: job_of(prepared_job).lease_expires_at != before.lease_expires_at)
        seen.append(job_of(prepared_job))
        unkillable()

    thread = later(cancel)
    agent.drain()
    thread.join()
    assert [(job.state, job.phase) for job in seen] == [(State.RUNNING, "cancelling")]
    assert (job_of(prepared_job).state, _is_sick(installation, agent)) == (State.CANCELLED, True)
    with installation.database.reading() as session:
        kinds = [event.kind for event in session.query(JobEvent).filter_by(job_id=prepared_job)]
    assert kinds.index("cancel_delayed") < kinds.index("job_cancelled")


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("way", ["host", "operator"])
def test_a_cancel_outlives_the_agent_whose_process_nothing_ends(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    unkillable: Callable[[], None],
    way: str,
) -> None:
    """The agent is stopped meanwhile; its lease runs out, and a new instance finds the process alive."""
    agent = make_agent(Queue.TRAIN, "stubborn", cancel_grace_seconds=0.1, unkillable_seconds=0.3)
    thread = later(
        lambda: wait_for(lambda: job_of(prepared_job).state == State.RUNNING),
        lambda: _cancel(installation, prepared_job),
        lambda: wait_for(lambda: _is_sick(installation, agent)),
        agent.stopping.set,
    )
    agent.drain()
    thread.join()
    _close_locks(installation)
    again = make_agent(Queue.TRAIN, "done", unkillable_seconds=0.3)
    again.drain()
    assert (_sweep_much_later(installation), job_of(prepared_job).state) == ([], State.RUNNING)
    if way == "operator":
        _release(installation, agent.worker_id)
        assert _sweep_much_later(installation) == [prepared_job]
    else:
        unkillable()
        wait_for(lambda: (again.drain(), job_of(prepared_job).state)[1] == State.CANCELLED)
        assert _is_sick(installation, again)
    assert job_of(prepared_job).state == State.CANCELLED


def test_a_cancel_waits_for_the_memory_of_the_gpu(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    driver: Callable[[str], None],
    tmp_path: Path,
) -> None:
    driver(f'sed "s/>445</>$(cat {tmp_path}/pid)</" {_RECORDED}')
    (tmp_path / "pid").write_text("1", encoding="utf-8")
    agent = make_agent(Queue.TRAIN, "wait", device=GPU, unkillable_seconds=0.5)
    seen: list[str] = []

    def cancel() -> None:
        wait_for(lambda: job_of(prepared_job).phase == "training")
        with installation.database.reading() as session:
            pid = repository.list_runs(session, prepared_job)[0].pid or 0
        (tmp_path / "pid").write_text(str(pid), encoding="utf-8")
        _cancel(installation, prepared_job)
        wait_for(lambda: _is_sick(installation, agent))
        seen.append(job_of(prepared_job).state)
        (tmp_path / "pid").write_text("1", encoding="utf-8")

    thread = later(cancel)
    agent.drain()
    thread.join()
    assert (seen, job_of(prepared_job).state) == ([State.RUNNING], State.CANCELLED)


def test_memory_of_an_ended_process_that_is_not_given_back_sets_the_gpu_aside(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    driver: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """The driver lists a process of the run's after its end."""
    driver(f'sed "s/>445</>$(cat {tmp_path}/pid)</" {_RECORDED}')
    (tmp_path / "pid").write_text("1", encoding="utf-8")

    def note_pid() -> None:
        wait_for(lambda: job_of(prepared_job).state == State.RUNNING)
        with installation.database.reading() as session:
            pid = repository.list_runs(session, prepared_job)[0].pid or 0
        (tmp_path / "pid").write_text(str(pid), encoding="utf-8")
        psutil.Process(pid).kill()

    agent = make_agent(Queue.TRAIN, "wait", device=GPU, unkillable_seconds=0.5)
    thread = later(note_pid)
    agent.drain()
    thread.join()
    worker = _worker(installation, agent)
    assert worker is not None
    assert (worker.state, job_of(prepared_job).state) == ("sick", State.QUEUED)
    assert "is not given back" in (worker.reason or "")


def test_a_gpu_that_the_driver_lost_is_set_aside_before_a_job_is_claimed(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    driver: Callable[[str], None],
) -> None:
    driver("echo 'Unable to determine the device handle for GPU0: Unknown Error'; exit 15")
    agent = make_agent(Queue.TRAIN, "done", device=GPU)
    agent.drain()
    worker = _worker(installation, agent)
    assert (worker.state if worker else None, job_of(prepared_job).run_count) == ("sick", 0)


@pytest.mark.usefixtures("driver")
def test_a_job_that_does_not_fit_what_is_free_now_is_left(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    """The card has 81,559 MiB, of which others have taken all but 79,437."""
    agent = make_agent(Queue.TRAIN, "done", device=GPU)
    with installation.database.transaction() as session:
        session.get_one(Job, prepared_job).memory_bytes = 80_000 << 20
    agent.drain()
    assert job_of(prepared_job).run_count == 0
    with installation.database.transaction() as session:
        session.get_one(Job, prepared_job).memory_bytes = 79_000 << 20
    agent.drain()
    assert job_of(prepared_job).state == State.SUCCEEDED


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"memory_bytes": 80_000 << 20}, 1),
        ({"memory_bytes": 82_000 << 20}, 0),
        ({"labels": "eu"}, 0),
        ({"gpu_count": 2}, 0),
        ({"memory_bytes": 79_000 << 20}, 3),
    ],
)
def test_the_driver_is_not_asked_again_and_again_for_a_job_that_the_device_cannot_take(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    driver: Callable[[str], None],
    tmp_path: Path,
    fields: dict[str, Any],
    asked: int,
) -> None:
    """A job that fits has it asked at the claim, at the end of the run, and at the claim after that."""
    questions = tmp_path / "questions"
    questions.touch()
    driver(f"echo >> {questions}; cat {_RECORDED}")
    with installation.database.transaction() as session:
        session.execute(update(Job).where(Job.id == prepared_job).values(**fields))
    agent = make_agent(Queue.TRAIN, "done", device=GPU)
    for _ in range(3):
        agent.drain()
    assert len(questions.read_text().splitlines()) == asked


@pytest.mark.usefixtures("driver")
def test_a_worker_tells_what_is_free_and_its_labels(
    installation: Installation, make_agent: MakeAgent
) -> None:
    agent = make_agent(Queue.TRAIN, "done", device=GPU, labels="nvlink, big")
    agent.presence.record("active")
    worker = _worker(installation, agent)
    assert worker is not None
    assert (worker.resources["free_memory_bytes"], worker.labels) == (79437 << 20, "big,nvlink")


def test_a_sick_worker_stays_sick_over_restarts_and_not_over_a_reboot(installation: Installation) -> None:
    def record(instance_id: str, boot: str) -> str:
        with installation.database.transaction() as session:
            return workers.record_worker(
                session, "host/gpu0", instance_id=instance_id, host="host", queue=Queue.TRAIN,
                device="GPU-a", version="1", resources={"boot_id": boot}, state="active", now=clock(session),
            ).state  # fmt: skip

    assert record("one", "monday") == "active"
    with installation.database.transaction() as session:
        workers.set_aside(session, "host/gpu0", "ECC")
    assert [record("one", "monday"), record("two", "monday"), record("two", "tuesday")] == [
        "sick",
        "sick",
        "active",
    ]
