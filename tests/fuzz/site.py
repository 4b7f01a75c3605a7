"""A server with jobs in every state, and an agent for what callers wait for; in one process, on SQLite."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from api.app import create_app
from luthier.database import clock
from luthier.devices import Device
from luthier.installation import Installation, open_installation, prepare
from luthier.samples import add_sample
from luthier.service import control
from luthier.settings import Settings
from luthier.status import Queue
from tests.factories import create_file, create_job, create_prepared_job, create_tuned_job
from tests.serving import serving
from tests.waiting import later
from worker.agent import Agent


@dataclass(frozen=True)
class Site:
    """Where the server is, and ids of what is there."""

    url: str
    key: str
    file_ids: tuple[str, ...]
    job_ids: tuple[str, ...]


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """A site whose files lie in `folder`."""
    settings = Settings(data_dir=folder, watch_seconds=0.1, errand_wait_seconds=0.5)
    settings.models.mkdir(parents=True)
    add_sample("tiny", settings.models)
    installation = open_installation(settings)
    prepared = prepare(installation)
    job_ids = _fill(installation)
    agent = Agent(
        installation,
        Queue.CPU,
        Device("cpu", "CPU"),
        host="host",
        instance_id="fuzz",
        stopping=threading.Event(),
    )
    thread = later(lambda: agent.serve(0.05))
    try:
        with serving(create_app(installation)) as url:
            yield Site(url, prepared.first_key or "", ("file-train",), job_ids)
    finally:
        agent.stopping.set()
        thread.join()
        installation.database.close()


def _fill(installation: Installation) -> tuple[str, ...]:
    """Jobs that wait, were paused, were cancelled, and have succeeded."""
    rows = b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n' * 4
    size, sha256 = _store(installation, "files/file-train", rows)
    # Where the result of the tuned job says that it lies.
    _store(installation, "x", b"1")
    with installation.database.transaction() as session:
        now = clock(session)
        create_file(session, size_bytes=size, sha256=sha256, report={"valid": True, "row_count": 4})
        create_tuned_job(session, "ftjob-tuned")
        create_job(session, "ftjob-waits", now=now)
        create_prepared_job(session, "ftjob-paused")
        control.request_pause(session, create_job(session, "ftjob-pauses", now=now), now=now)
        control.request_cancel(session, create_job(session, "ftjob-over", now=now), now=now)
    return ("ftjob-tuned", "ftjob-waits", "ftjob-paused", "ftjob-pauses", "ftjob-over")


def _store(installation: Installation, key: str, data: bytes) -> tuple[int, str]:
    with installation.storage.receive() as incoming:
        incoming.write(data)
        incoming.flush()
        installation.storage.keep(incoming, key)
        return incoming.size_bytes, incoming.sha256
