"""How long a caller waits on a quiet site: from submit to the trainer's first word, and from cancel to free.

One job at a time, each on an idle host. What the trainer itself takes to start is told apart, since a real
one loads libraries and a model: the scripted one notes when its process began and when it first spoke.
"""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from luthier.status import FINAL, State
from luthier.tables import Job, Run
from tests.chaos.client import PatientClient
from tests.chaos.invariants import is_alive
from tests.chaos.site import Site
from tests.waiting import wait_for

_NEVER_DONE_STEPS = 100_000
_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Latencies:
    """Seconds, one entry a job; `start_beyond_trainer` is a start without the trainer's own."""

    start: list[float]
    start_beyond_trainer: list[float]
    cancel_answer: list[float]
    cancel_to_free: list[float]


def measure_latencies(site: Site, count: int, *, first_number: int) -> Latencies:
    """Submit and cancel `count` jobs that would train for ever; numbers from `first_number` are new."""
    client = PatientClient(site.url, site.key)
    file_id = client.upload()
    found = Latencies([], [], [], [])
    # The phase between our submits and the agents' polls is a matter of chance, not of our rhythm.
    pauses = random.Random(first_number)
    for number in range(first_number, first_number + count):
        submitted_at = time.time()
        job_id = client.submit(file_id, number, steps=_NEVER_DONE_STEPS, save_steps=_NEVER_DONE_STEPS)
        wait_for(lambda job_id=job_id: _start(site, job_id), _WAIT_SECONDS)
        began_at, spoke_at = _start(site, job_id) or (0.0, 0.0)
        found.start.append(spoke_at - submitted_at)
        found.start_beyond_trainer.append(spoke_at - submitted_at - (spoke_at - began_at))
        time.sleep(pauses.uniform(0.2, 0.7))
        _cancel(site, client, job_id, found)
        time.sleep(pauses.uniform(0.0, 0.5))
    client.close()
    return found


def _cancel(site: Site, client: PatientClient, job_id: str, found: Latencies) -> None:
    pid = _pid_of_run(site, job_id)
    asked_at = time.time()
    client.wish(job_id, "cancel")
    found.cancel_answer.append(time.time() - asked_at)
    wait_for(lambda: _row(site, job_id).state in FINAL, _WAIT_SECONDS)
    job = _row(site, job_id)
    assert job.state == State.CANCELLED, f"{job_id} is {job.state}: {job.error_message}"
    assert not is_alive(pid), f"{job_id} is cancelled, and its process {pid} lives"
    found.cancel_to_free.append((job.finished_at.timestamp() if job.finished_at else time.time()) - asked_at)


def _start(site: Site, job_id: str) -> tuple[float, float] | None:
    """When a job's trainer began and when it first spoke."""
    path: Path = site.stage / "starts.jsonl"
    if path.exists():
        for line in reversed(path.read_text(encoding="utf-8").splitlines()):
            noted = json.loads(line)
            if noted["job_id"] == job_id:
                return noted["began_at"], noted["spoke_at"]
    return None


def _row(site: Site, job_id: str) -> Job:
    with site.database.reading() as session:
        return session.get_one(Job, job_id)


def _pid_of_run(site: Site, job_id: str) -> int:
    with site.database.reading() as session:
        run = session.get_one(Run, (job_id, 1))
    assert run.pid is not None
    return run.pid
