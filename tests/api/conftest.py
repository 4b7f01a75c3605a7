"""An installation with a key, the application over it, and a real server for clients that want a socket."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from api.app import create_app
from luthier.database import clock
from luthier.devices import Device
from luthier.installation import Installation, open_installation, prepare
from luthier.keys import new_key
from luthier.logs import configure_logs
from luthier.service import access
from luthier.settings import Settings
from luthier.status import Kind, Queue
from luthier.tables import Organization, Project
from tests.serving import serving
from worker.agent import Agent

_SCRIPT = Path(__file__).parents[1] / "worker" / "scripted_child.py"
ROWS = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}] * 4


def jsonl(*rows: Any) -> bytes:
    """Rows as a file of JSON Lines; a row of bytes stands as it is."""
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def app_database_url(sqlite_url: str) -> str:
    """URL of the database below the application; a module that wants both kinds overrides it."""
    return sqlite_url


@pytest.fixture
def app_storage_fields() -> dict[str, Any]:
    """What names the storage; a module that wants both kinds overrides it."""
    return {}


@pytest.fixture
def settings(
    tmp_path: Path, app_database_url: str, app_storage_fields: dict[str, Any], model_dir: Path
) -> Settings:
    """Settings for one machine in a fresh folder."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=app_database_url,
        model_dir=model_dir,
        **app_storage_fields,
        watch_seconds=0.05,
        # What Starlette's client calls the application.
        allowed_hosts="testserver",
        # Long enough for an agent on a busy machine; who tests the end of waiting shortens it.
        errand_wait_seconds=30,
    )


@pytest.fixture
def installation(settings: Settings) -> Iterator[Installation]:
    """An installation with its default project."""
    configure_logs(settings)
    installation = open_installation(settings)
    prepare(installation)
    yield installation
    installation.database.close()


@pytest.fixture
def make_key(installation: Installation) -> Callable[..., str]:
    """Makes keys, each for a project that is made where it is missing; fields are those of `record_key`."""

    def make(project_id: str = access.DEFAULT_PROJECT, **fields: Any) -> str:
        key = new_key()
        with installation.database.transaction() as session:
            now = clock(session)
            project = session.get(Project, project_id)
            if project is None:
                organization = session.get_one(Organization, access.DEFAULT_ORGANIZATION)
                project = Project(
                    id=project_id, organization_id=organization.id, name=project_id, created_at=now
                )
                session.add(project)
                session.flush()
            access.record_key(
                session, project, key, key_id=f"key-{key.prefix}", name="test",
                installation_key=installation.installation_key, now=now, **fields,
            )  # fmt: skip
        return key.text

    return make


@pytest.fixture
def key(make_key: Callable[..., str]) -> str:
    """A key of the default project."""
    return make_key()


@pytest.fixture
def stranger(installation: Installation, make_key: Callable[..., str]) -> Iterator[TestClient]:
    """A client of another project."""
    key = make_key("proj-other", scopes=access.PROJECT_SCOPES)
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(installation), headers=headers) as client:
        yield client


@pytest.fixture
def client(installation: Installation, key: str) -> Iterator[TestClient]:
    """A client with a key, straight to the application."""
    with TestClient(create_app(installation), headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


@pytest.fixture
def make_agent(installation: Installation) -> Callable[[], Agent]:
    """A cpu agent."""

    def command(_kind: Kind, folder: Path) -> list[str]:
        return [sys.executable, "-P", str(_SCRIPT), "done", str(folder)]

    return lambda: Agent(
        installation,
        Queue.CPU,
        Device("cpu", "CPU"),
        host="host",
        instance_id="instance",
        stopping=threading.Event(),
        child_command=command,
    )


@pytest.fixture
def agent(make_agent: Callable[[], Agent]) -> Iterator[Agent]:
    """A cpu agent that serves while the test runs."""
    with _serving(make_agent()) as agent:
        yield agent


@contextmanager
def _serving(agent: Agent) -> Iterator[Agent]:
    thread = threading.Thread(target=agent.serve, args=(0.05,))
    thread.start()
    try:
        yield agent
    finally:
        agent.stopping.set()
        thread.join()


@pytest.fixture
def upload(client: TestClient) -> Callable[..., Any]:
    """Uploads bytes as a training file and gives the answer."""

    def send(data: bytes = jsonl(*ROWS), filename: str = "rows.jsonl", purpose: str = "fine-tune") -> Any:
        return client.post(
            "/v1/files", data={"purpose": purpose}, files={"file": (filename, io.BytesIO(data))}
        )

    return send


@pytest.fixture
def file_id(upload: Callable[..., Any]) -> str:
    """Id of a valid training file."""
    return str(upload().json()["id"])


@pytest.fixture
def server(installation: Installation) -> Iterator[str]:
    """URL of a real server on loopback."""
    with serving(create_app(installation)) as url:
        yield url


@pytest.fixture(params=[False, True], ids=["lenient", "strict"])
def openai_client(request: pytest.FixtureRequest, server: str, key: str) -> Iterator[OpenAI]:
    """The stock client, also such as checks every field of every answer."""
    with OpenAI(
        base_url=f"{server}/v1", api_key=key, max_retries=0, _strict_response_validation=request.param
    ) as client:
        yield client
