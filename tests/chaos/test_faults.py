"""Faults one by one, on real processes: what becomes of a job that is in hand when one comes.

A site is started once for all cases of a database. Each brings jobs of its own and starts again what it
ended; after the last one, nothing that must hold may be broken. What other tests show is not repeated here
(`tests.chaos.catalogue` tells where).
"""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from luthier import repository
from luthier.status import FINAL, State
from luthier.tables import Checkpoint, File, Job, JobEvent, Run
from tests.chaos.client import PatientClient
from tests.chaos.invariants import Scene, check_all, is_alive, processes_of
from tests.chaos.servers import OwnPostgres, own_postgres
from tests.chaos.site import CANARY, Site
from tests.waiting import wait_for

pytestmark = [pytest.mark.full, pytest.mark.timeout(120)]
# Long enough to be caught in the middle, short enough to be waited for.
STEPS, STEP_SECONDS = 40, 0.05


@dataclass
class Cases:
    """A running site, and what the cases of this file do with it."""

    site: Site
    client: PatientClient
    file_id: str
    accepted: dict[str, list[State]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def submit(
        self, *, order: dict[str, Any] | None = None, ends: State = State.SUCCEEDED, **fields: Any
    ) -> str:
        """Id of a new job that takes some 2 s and saves every second step."""
        number = next(self.numbers)
        text = json.dumps({"step_seconds": STEP_SECONDS} | (order or {}))
        (self.site.stage / "orders" / f"{number}.json").write_text(text)
        job_id = self.client.submit(self.file_id, number, **{"steps": STEPS} | fields)
        self.accepted[job_id] = [ends]
        return job_id

    def submit_and_wait_for_checkpoints(self, at_least: int = 1, **fields: Any) -> str:
        job_id = self.submit(**fields)
        wait_for(lambda: len(self.checkpoints(job_id)) >= at_least)
        return job_id

    def job(self, job_id: str) -> Job:
        with self.site.database.reading() as session:
            return session.get_one(Job, job_id)

    def runs(self, job_id: str) -> list[Run]:
        """In the order of their epochs."""
        with self.site.database.reading() as session:
            query = select(Run).where(Run.job_id == job_id).order_by(Run.epoch)
            return list(session.scalars(query))

    def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        """Newest first."""
        with self.site.database.reading() as session:
            return repository.all_checkpoints(session, job_id)

    def told(self, job_id: str, kind: str) -> list[JobEvent]:
        with self.site.database.reading() as session:
            query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.kind == kind)
            return list(session.scalars(query))

    def host_of(self, job_id: str) -> str:
        return str(self.job(job_id).lease_owner).split("/", maxsplit=1)[0]

    def trainers(self, job_id: str) -> list[int]:
        """Processes that work on a job."""
        return [
            pid
            for pid, command in processes_of(self.site.folder)
            if "scripted_trainer" in command and f"/{job_id}/" in command
        ]

    def wait_for_end(self, job_id: str) -> Job:
        wait_for(lambda: self.job(job_id).state in FINAL)
        return self.job(job_id)

    def kill_agents(self) -> None:
        for host in self.site.hosts:
            self.site.kill(*self.site.training_names[host])

    def start_agents(self) -> None:
        for host in self.site.hosts:
            for name in self.site.training_names[host]:
                self.site.start(name)

    def close(self) -> list[str]:
        """End the site; what is broken."""
        self.client.close()
        wait_for(lambda: all(self.job(job_id).state in FINAL for job_id in self.accepted))
        time.sleep(1)
        self.site.end()
        site = self.site
        scene = Scene(
            site.database, site.storage, site.folder, self.accepted,
            secrets=(CANARY, site.key), searched=(site.folder,),
        )  # fmt: skip
        return check_all(scene)


def _cases(site: Site) -> Iterator[Cases]:
    try:
        site.start_all()
        client = PatientClient(site.url, site.key)
        cases = Cases(site, client, client.upload())
        yield cases
        assert cases.close() == []
    finally:
        site.close()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Cases]:
    """Two hosts on SQLite, with a lease of 2 s."""
    folder = tmp_path_factory.mktemp("site")
    yield from _cases(Site(folder, f"sqlite:///{folder}/luthier.db", model_dir, hosts=("host-0", "host-1")))


@pytest.fixture(scope="module")
def postgres() -> Iterator[OwnPostgres]:
    """A server that may be stopped."""
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def postgres_cases(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path, postgres: OwnPostgres
) -> Iterator[Cases]:
    """One host on Postgres, with a lease that outlasts a short outage, as in production."""
    folder = tmp_path_factory.mktemp("site")
    times = {"lease_seconds": "20", "self_fence_seconds": "15", "heartbeat_seconds": "0.5"}
    yield from _cases(Site(folder, postgres.url, model_dir, hosts=("host-0",), variables=times))


def test_f1_an_agent_killed_mid_step_takes_its_trainer_along_and_the_job_goes_on(cases: Cases) -> None:
    job_id = cases.submit_and_wait_for_checkpoints()
    host = cases.host_of(job_id)
    (trainer,) = cases.trainers(job_id)
    cases.site.kill(f"{host}/agent")
    wait_for(lambda: not is_alive(trainer), seconds=1)
    cases.site.start(f"{host}/agent")
    job = cases.wait_for_end(job_id)
    first, second = cases.runs(job_id)
    assert (job.state, first.outcome, second.outcome) == (State.SUCCEEDED, "lost", "succeeded")
    assert second.from_step >= 2


def test_f2_a_killed_trainer_is_started_again_from_its_checkpoint(cases: Cases) -> None:
    job_id = cases.submit_and_wait_for_checkpoints()
    os.kill(cases.trainers(job_id)[0], signal.SIGKILL)
    assert cases.wait_for_end(job_id).state == State.SUCCEEDED
    first, second = cases.runs(job_id)
    assert (first.exit_code, second.from_step >= 2) == (-9, True)


def test_f4_an_agent_that_slept_through_its_lease_publishes_nothing(cases: Cases) -> None:
    job_id = cases.submit_and_wait_for_checkpoints()
    host = cases.host_of(job_id)
    cases.site.send(f"{host}/agent", signal.SIGSTOP)
    job = cases.wait_for_end(job_id)
    cases.site.send(f"{host}/agent", signal.SIGCONT)
    wait_for(lambda: cases.trainers(job_id) == [])
    assert (job.state, len(cases.told(job_id, "job_succeeded"))) == (State.SUCCEEDED, 1)
    assert [run.outcome for run in cases.runs(job_id)] == ["lost", "succeeded"]


def test_f34_an_agent_killed_while_its_trainer_saves_is_an_agent_killed(cases: Cases) -> None:
    job_id = cases.submit_and_wait_for_checkpoints(order={"step_seconds": 0.5}, steps=8)
    name = f"{cases.host_of(job_id)}/agent"
    (trainer,) = cases.trainers(job_id)
    cases.site.processes[name].terminate()
    time.sleep(0.2)
    cases.site.kill(name, restart=True)
    wait_for(lambda: not is_alive(trainer), seconds=1)
    assert cases.wait_for_end(job_id).state == State.SUCCEEDED
    assert [run.outcome for run in cases.runs(job_id)] == ["lost", "succeeded"]


@pytest.mark.parametrize(("damaged", "from_start"), [(1, False), (None, True)], ids=["F28-newest", "F29-all"])
def test_damaged_checkpoints_are_told_of_and_passed_over(
    cases: Cases, damaged: int | None, from_start: bool
) -> None:
    job_id = cases.submit_and_wait_for_checkpoints(3, qlora={"save_total_limit": 4})
    cases.kill_agents()
    found = cases.checkpoints(job_id)
    for checkpoint in found[:damaged]:
        with (cases.site.storage / checkpoint.storage_key / "weights.bin").open("r+b") as file:
            byte = file.read(1)[0]
            file.seek(0)
            file.write(bytes([byte ^ 1]))
    cases.start_agents()
    assert cases.wait_for_end(job_id).state == State.SUCCEEDED
    assert len(cases.told(job_id, "checkpoint_damaged")) == len(found[:damaged])
    assert cases.runs(job_id)[-1].from_step == (0 if from_start else found[1].step)


def test_f35_a_cancel_at_any_moment_ends_in_one_of_two_ways(cases: Cases) -> None:
    """Waiting, starting, running, finalizing: twenty cancels that come when they come."""
    moments = random.Random(35)
    ends = []
    for _ in range(20):
        job_id = cases.submit(order={"step_seconds": 0.01}, steps=10)
        time.sleep(moments.uniform(0.0, 0.8))
        cases.client.wish(job_id, "cancel")
        job = cases.wait_for_end(job_id)
        ends.append(State(job.state))
        cases.accepted[job_id] = [State(job.state)]
        assert len(cases.told(job_id, "job_succeeded")) + len(cases.told(job_id, "job_cancelled")) == 1
    assert {State.CANCELLED} <= set(ends) <= {State.CANCELLED, State.SUCCEEDED}


def test_f36_a_cancel_while_nobody_works_is_honoured_when_the_lease_is_over(cases: Cases) -> None:
    job_id = cases.submit_and_wait_for_checkpoints(ends=State.CANCELLED)
    cases.kill_agents()
    cases.client.wish(job_id, "cancel")
    job = cases.wait_for_end(job_id)
    cases.start_agents()
    assert (job.state, len(cases.runs(job_id))) == (State.CANCELLED, 1)


def test_f37_a_submit_that_is_repeated_after_the_api_died_makes_one_job(cases: Cases) -> None:
    number = next(cases.numbers)
    request = cases.client.build_submit(cases.file_id, number, steps=4)
    with socket.create_connection(("127.0.0.1", cases.site.port)) as connection:
        connection.sendall(request)
        wait_for(lambda: _jobs_of(cases, number))
        cases.site.kill("head/api", restart=True)
    job_id = cases.client.submit(cases.file_id, number, steps=4)
    cases.accepted[job_id] = [State.SUCCEEDED]
    assert _jobs_of(cases, number) == [job_id]


def test_f38_an_upload_during_which_the_api_died_leaves_no_file(cases: Cases) -> None:
    with cases.site.database.reading() as session:
        before = session.scalar(select(func.count()).select_from(File))
    with socket.create_connection(("127.0.0.1", cases.site.port)) as connection:
        connection.sendall(cases.client.build_half_an_upload())
        wait_for(lambda: _temporary_files(cases))
        cases.site.kill("head/api", restart=True)
    wait_for(cases.client.is_answered)
    with cases.site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(File)) == before
    assert cases.client.upload().startswith("file-")


def test_f16_a_database_that_is_away_for_seconds_disturbs_no_run(
    postgres_cases: Cases, postgres: OwnPostgres
) -> None:
    job_id = postgres_cases.submit_and_wait_for_checkpoints(steps=100)
    (trainer,) = postgres_cases.trainers(job_id)
    postgres.stop_at_once()
    time.sleep(4)
    lived = is_alive(trainer)
    postgres.start()
    job = postgres_cases.wait_for_end(job_id)
    assert (lived, job.state, len(postgres_cases.runs(job_id))) == (True, State.SUCCEEDED, 1)


def _jobs_of(cases: Cases, number: int) -> list[str]:
    with cases.site.database.reading() as session:
        rows = session.scalars(select(Job).where(Job.kind == "train"))
        return [job.id for job in rows if (job.user_metadata or {}).get("number") == str(number)]


def _temporary_files(cases: Cases) -> list[Path]:
    return [path for path in (cases.site.storage / ".tmp").iterdir() if path.is_file()]
