"""What docs/decisions/0001 holds of Celery and Redis, so that a release which behaves otherwise is noticed.

The numbers C1 ... C13 are that page's. What is not here is pinned where it matters: C5, C7 and C13 with our
settings in test_doorbells.py, C6 and C8 in test_relay.py. The long ones show why settings are as they are.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from luthier.queue import make_sender
from tests.brokers import Broker
from tests.waiting import wait_for

_SCRIPT = Path(__file__).with_name("contract_worker.py")
_RESTORE_OFTEN = {
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "global_keyprefix": "luthier:",
}


@dataclass
class Stage:
    """A broker, a log that tasks write to, and workers that end with the test."""

    broker: Broker
    folder: Path
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *arguments: str, environment: dict[str, str] | None = None, **settings: object) -> int:
        """Start a worker; its number."""
        number = len(self.workers)
        command = [sys.executable, "-P", str(_SCRIPT), self.broker.url, str(self.log), json.dumps(settings)]
        with (self.folder / f"worker-{number}.log").open("ab") as log:
            started = subprocess.Popen(
                [*command, f"--hostname=worker-{number}@here", *arguments],
                env=os.environ | (environment or {}),
                stdout=log,
                stderr=log,
            )
        self.workers.append(started)
        wait_for(self.broker.has_listener)
        return number

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def gate(self) -> Path:
        """A file that held tasks wait for."""
        return self.folder / "gate"

    def send(self, name: str, what: str = "quick") -> None:
        make_sender(self.broker.url).send_task("contract", args=[name, what], queue="cpu")

    def lines(self) -> list[list[str]]:
        text = self.log.read_text("utf-8") if self.log.exists() else ""
        return [line.split() for line in text.splitlines()]

    def pid(self, name: str) -> int:
        """Pool process of a task, once it has started."""
        wait_for(lambda: self.count("start", name))
        return next(int(line[2]) for line in self.lines() if line[:2] == ["start", name])

    def count(self, *words: str) -> int:
        return sum(line[: len(words)] == list(words) for line in self.lines())

    def wait_for(self, *words: str) -> None:
        wait_for(lambda: self.count(*words) > 0)


@pytest.fixture
def stage(broker_server: Broker, tmp_path: Path) -> Iterator[Stage]:
    broker_server.flush()
    stage = Stage(broker_server, tmp_path)
    yield stage
    stage.gate.touch()
    for worker in stage.workers:
        worker.kill()
        worker.wait()


def test_c2_c4_a_message_is_gone_as_soon_as_it_starts(stage: Stage) -> None:
    stage.start()
    stage.send("held", str(stage.gate))
    os.kill(stage.pid("held"), signal.SIGKILL)
    stage.send("held-2", str(stage.gate))
    stage.pid("held-2")
    stage.workers[0].kill()
    stage.workers[0].wait()
    stage.start()
    stage.send("next")
    stage.wait_for("end", "next")
    assert stage.count("start", "held") == stage.count("start", "held-2") == 1


def test_c12_an_idle_worker_takes_what_a_busy_one_cannot(stage: Stage) -> None:
    stage.start()
    stage.send("held", str(stage.gate))
    stage.pid("held")
    stage.start()
    for name in ("a", "b", "c"):
        stage.send(name)
    for name in ("a", "b", "c"):
        stage.wait_for("end", name)
    assert stage.count("end", "held") == 0


def test_c13_a_worker_in_mid_task_hears_at_once_that_it_shall_stop(stage: Stage) -> None:
    worker = stage.workers[stage.start()]
    stage.send("held", str(stage.gate))
    stage.pid("held")
    worker.terminate()
    stage.wait_for("told")
    assert worker.poll() is None
    stage.gate.touch()
    assert worker.wait(60) == 0
    assert stage.count("end", "held") == 1


@pytest.mark.full
def test_c13_a_soft_shutdown_tells_nobody_before_its_time_is_over(stage: Stage) -> None:
    remapped = {"REMAP_SIGTERM": "SIGQUIT"}
    worker = stage.workers[stage.start(environment=remapped, worker_soft_shutdown_timeout=4.0)]
    stage.send("held", str(stage.gate))
    stage.pid("held")
    worker.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(2)
    assert stage.count("told") == 0
    worker.wait(60)
    assert stage.count("end", "held") == 0


@pytest.mark.full
def test_c1_a_late_acknowledgement_runs_a_long_task_again_and_again(stage: Stage) -> None:
    options = _RESTORE_OFTEN | {"visibility_timeout": 2}
    for _ in range(2):
        stage.start(task_acks_late=True, visibility_timeout=2, broker_transport_options=options)
    stage.send("long", "seconds 8")
    stage.wait_for("end", "long")
    assert stage.count("start", "long") > 1


@pytest.mark.full
def test_c1_with_our_settings_a_task_may_outlast_the_visibility_timeout(stage: Stage) -> None:
    options = _RESTORE_OFTEN | {"visibility_timeout": 2}
    for _ in range(2):
        stage.start(visibility_timeout=2, broker_transport_options=options)
    stage.send("long", "seconds 8")
    stage.wait_for("end", "long")
    assert stage.count("start", "long") == 1


@pytest.mark.full
def test_c3_a_late_message_of_a_killed_worker_waits_for_the_visibility_timeout(stage: Stage) -> None:
    options = _RESTORE_OFTEN | {"visibility_timeout": 3600}
    stage.start(task_acks_late=True, broker_transport_options=options)
    stage.send("held", str(stage.gate))
    stage.pid("held")
    stage.workers[0].kill()
    stage.workers[0].wait()
    stage.start(task_acks_late=True, broker_transport_options=options)
    stage.send("next")
    stage.wait_for("end", "next")
    assert stage.count("start", "held") == 1


@pytest.mark.full
def test_c4_rejecting_on_a_lost_pool_process_runs_a_poisonous_task_in_a_circle(stage: Stage) -> None:
    stage.start(task_acks_late=True, task_reject_on_worker_lost=True)
    stage.send("poison", str(stage.gate))
    for attempt in range(1, 4):
        wait_for(lambda: stage.count("start", "poison") == attempt)  # noqa: B023
        os.kill(int(stage.lines()[-1][2]), signal.SIGKILL)
    wait_for(lambda: stage.count("start", "poison") == 4)


@pytest.mark.full
def test_c9_only_prefork_keeps_a_time_limit(stage: Stage) -> None:
    stage.start("--pool=solo", worker_pool="solo", task_time_limit=1)
    stage.send("long", "seconds 3")
    stage.wait_for("end", "long")


@pytest.mark.full
def test_c10_a_revoke_is_forgotten_where_no_worker_was_up(stage: Stage) -> None:
    app = make_sender(stage.broker.url)
    app.control.revoke("the-id")
    app.send_task("contract", args=["revoked", "quick"], queue="cpu", task_id="the-id")
    stage.start(worker_enable_remote_control=True)
    stage.wait_for("end", "revoked")


@pytest.mark.full
def test_c11_a_memory_error_that_escapes_ends_the_worker(stage: Stage) -> None:
    worker = stage.workers[stage.start()]
    stage.send("poison", "memory error")
    worker.wait(60)
    assert stage.count("told") == 0
