"""An installation with an agent whose children are scripted."""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from luthier.devices import Device
from luthier.installation import Installation, open_installation
from luthier.service import access
from luthier.settings import Settings
from luthier.status import Kind, Queue
from luthier.tables import Job
from tests.factories import NOW, create_file, create_job
from worker.agent import Agent

CPU_DEVICE = Device("cpu", "CPU")
_SCRIPT = Path(__file__).with_name("scripted_child.py")


@pytest.fixture
def worker_storage_fields() -> dict[str, Any]:
    """What names the storage; a module that wants another kind overrides it."""
    return {}


@pytest.fixture
def worker_database_url(sqlite_url: str) -> str:
    """URL of the database below the agents; a module that wants both kinds overrides it."""
    return sqlite_url


@pytest.fixture
def settings(
    tmp_path: Path, worker_database_url: str, worker_storage_fields: dict[str, Any], model_dir: Path
) -> Settings:
    """Settings for one machine in a fresh folder, with short times."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=worker_database_url,
        model_dir=model_dir,
        **worker_storage_fields,
        lease_seconds=20,
        heartbeat_seconds=1,
        self_fence_seconds=10,
        watch_seconds=0.02,
        stop_grace_seconds=1,
        cancel_grace_seconds=0.5,
        unkillable_seconds=10,
        start_timeout_seconds=20,
        max_infra_restarts=2,
    )


@pytest.fixture
def installation(settings: Settings) -> Iterator[Installation]:
    """An installation with the default project and one uploaded file."""
    installation = open_installation(settings)
    with installation.storage.receive() as incoming:
        incoming.write(b'{"messages": []}\n')
        installation.storage.keep(incoming, "files/file-train")
    with installation.database.transaction() as session:
        access.ensure_project(session, now=NOW)
        create_file(session)
    yield installation
    installation.database.close()


@pytest.fixture
def make_agent(installation: Installation) -> Callable[..., Agent]:
    """Agents whose children behave as a script says, with settings of their own where some are given."""

    def make(
        queue: Queue,
        behaviour: str,
        stopping: threading.Event | None = None,
        *,
        device: Device = CPU_DEVICE,
        **fields: Any,
    ) -> Agent:
        own = replace(installation, settings=Settings(**installation.settings.model_dump() | fields))

        def command(_kind: Kind, folder: Path) -> list[str]:
            return [sys.executable, "-P", str(_SCRIPT), behaviour, str(folder)]

        return Agent(
            own,
            queue,
            device,
            host="host",
            instance_id="instance-1",
            stopping=stopping or threading.Event(),
            child_command=command,
        )

    return make


@pytest.fixture
def prepared_job(installation: Installation, make_agent: Callable[..., Agent]) -> str:
    """Id of a job that went through preparation."""
    with installation.database.transaction() as session:
        job_id = create_job(session, model="tiny").id
    make_agent(Queue.CPU, "done").drain()
    return job_id


@pytest.fixture
def job_of(installation: Installation) -> Callable[[str], Job]:
    """Reads a job's row."""

    def read(job_id: str) -> Job:
        with installation.database.reading() as session:
            return _get(session, job_id)

    return read


def _get(session: Session, job_id: str) -> Job:
    return session.get_one(Job, job_id)
