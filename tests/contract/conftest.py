"""A running service with one job that has ended well, and what foreign clients said who called it."""

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from api.app import create_app
from luthier.database import clock
from luthier.devices import Device
from luthier.ids import new_id
from luthier.installation import Installation, open_installation, prepare
from luthier.keys import new_key
from luthier.logs import configure_logs
from luthier.service import access
from luthier.settings import Settings
from luthier.status import Kind, Queue
from luthier.tables import Project
from tests.api.conftest import ROWS, jsonl
from tests.factories import create_tuned_job
from tests.serving import serving
from worker.agent import Agent

_SCRIPT = Path(__file__).parents[1] / "worker" / "scripted_child.py"
_BASE = "acme/tiny"


def scripted(_kind: Kind, folder: Path) -> list[str]:
    """The command line of a child that plays its part."""
    return [sys.executable, "-P", str(_SCRIPT), "done", str(folder)]


# One for each client of each release that is called.
_EXPENDABLE = 6


@dataclass(frozen=True)
class Running:
    """The service, its key, and what there is on it.

    Attributes:
        poor_key: of the project `proj-poor`, which may have no jobs.
        base: a base model with a slash in its name.
        tuned: a job that has ended well.
        expendable: names of tuned models that may be deleted.
    """

    url: str
    key: str
    poor_key: str
    base: str
    tuned: str
    expendable: list[str]


@pytest.fixture(scope="session")
def installation(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, model_dir: Path
) -> Iterator[Installation]:
    """An installation with two base models and one key."""
    folder = tmp_path_factory.mktemp("contract")
    shutil.copyfile(migrated_sqlite, folder / "luthier.db")
    shutil.copytree(model_dir, folder / "models")
    shutil.copytree(folder / "models" / "tiny", folder / "models" / _BASE.replace("/", "--"))
    settings = Settings(
        data_dir=folder / "data",
        database_url=f"sqlite:///{folder / 'luthier.db'}",
        model_dir=folder / "models",
        watch_seconds=0.05,
    )
    configure_logs(settings)
    installation = open_installation(settings)
    prepare(installation)
    yield installation
    installation.database.close()


@pytest.fixture(scope="session")
def running(installation: Installation) -> Iterator[Running]:
    """A real server on loopback with a job whose child was scripted; all else is as users have it."""
    key = _make_key(installation, access.DEFAULT_PROJECT)
    with installation.database.transaction() as session:
        expendable = [
            create_tuned_job(session, f"ftjob-{number}").fine_tuned_model or ""
            for number in range(_EXPENDABLE)
        ]
    with serving(create_app(installation)) as server:
        url = f"{server}/v1"
        tuned = _tune(installation, url, key)
        yield Running(url, key, _poor_key(installation), _BASE, tuned, expendable)


def _tune(installation: Installation, url: str, key: str) -> str:
    """Id of a job that was submitted and worked on until it had succeeded."""
    with OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        file = client.files.create(file=("rows.jsonl", jsonl(*ROWS)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, validation_file=file.id, suffix="faq"
        )
        for queue in (Queue.CPU, Queue.TRAIN):
            make_agent(installation, queue).drain()
        done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done
    return done.id


def make_agent(
    installation: Installation, queue: Queue, command: Callable[[Kind, Path], list[str]] = scripted
) -> Agent:
    """An agent of this machine's CPU."""
    return Agent(
        installation,
        queue,
        Device("cpu", "CPU"),
        host="host",
        instance_id="instance",
        stopping=threading.Event(),
        child_command=command,
    )


def _poor_key(installation: Installation) -> str:
    with installation.database.transaction() as session:
        project = Project(
            id="proj-poor", organization_id=access.DEFAULT_ORGANIZATION, name="poor",
            quotas={"queued_jobs": 0}, created_at=clock(session),
        )  # fmt: skip
        session.add(project)
    return _make_key(installation, "proj-poor")


def _make_key(installation: Installation, project_id: str) -> str:
    key = new_key()
    with installation.database.transaction() as session:
        access.record_key(
            session, session.get_one(Project, project_id), key, key_id=new_id("key"), name="test",
            installation_key=installation.installation_key, now=clock(session),
        )  # fmt: skip
    return key.text
