"""Expand, then contract: agents of the release before work on this release's schema, while jobs run (F51).

`tests/releases/<revision>.tar.xz` is the last code whose newest migration was that revision: `git archive
COMMIT luthier worker migrations tests/worker/scripted_child.py`. Its agents are started here as they were, on
a database that this release has migrated, and beside this release's own processes. The jobs
were accepted by the old release, too: a request with fields that it does not know is one it cannot read.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from luthier import repository, schema
from luthier.backup.rows import tables_of
from luthier.database import Database
from luthier.installation import Installation
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.tables import Job, Run
from tests.waiting import wait_for
from worker.agent import Agent

JobOf = Callable[[str], Job]
StartOld = Callable[[Queue, str], subprocess.Popen[str]]

_RELEASES = sorted((Path(__file__).parents[1] / "releases").glob("*.tar.xz"))
_TIMES = ("lease_seconds", "heartbeat_seconds", "self_fence_seconds", "watch_seconds")
# What the agent is told; the code that it finds is the old release's.
_AGENT = """
import signal, sys, threading
from pathlib import Path
import luthier
from luthier.devices import Device
from luthier.installation import open_installation
from luthier.settings import Settings
from luthier.status import Queue
from worker.agent import Agent

home, queue, behaviour = sys.argv[1:]
assert Path(luthier.__file__).is_relative_to(home), luthier.__file__
script = str(Path(home) / "tests" / "worker" / "scripted_child.py")
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
agent = Agent(
    open_installation(Settings()), Queue(queue), Device("cpu", "CPU"), host="old", instance_id="old",
    stopping=stopping,
    child_command=lambda kind, folder: [sys.executable, "-P", script, behaviour, str(folder)],
)
agent._record_presence("active")
agent.drain()
"""


# A job that the old release's API accepts.
_SUBMIT = """
from luthier.database import clock
from luthier.installation import open_installation
from luthier.service import jobs
from luthier.settings import Settings
from luthier.spec import JobRequest

database = open_installation(Settings()).database
request = JobRequest.model_validate({"model": "tiny", "training_file": "file-train"})
caller = jobs.Caller("org-local", "proj-default", "key-test")
with database.transaction() as session:
    jobs.submit(session, caller, request, job_id="ftjob-1", work_id="work-1", seed=7, now=clock(session))
database.close()
"""


@pytest.fixture
def worker_database_url(sqlite_or_long_url: str) -> str:
    """Each kind of database, in the long form of the tests."""
    return sqlite_or_long_url


@pytest.fixture(scope="session", params=_RELEASES, ids=lambda path: path.name.partition(".")[0])
def old_release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of an older release."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def environment(old_release: Path, settings: Settings) -> dict[str, str]:
    """What a process of the old release is given."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")},
        **{f"LUTHIER_{name.upper()}": str(getattr(settings, name)) for name in _TIMES},
        "LUTHIER_DATA_DIR": str(settings.data),
        "LUTHIER_DATABASE_URL": settings.database,
        "LUTHIER_MODEL_DIR": str(settings.models),
        "PYTHONPATH": str(old_release),
    }


@pytest.fixture
def start_old(old_release: Path, environment: dict[str, str]) -> StartOld:
    """Starts an agent of the old release, which works until it has nothing to do."""

    def start(queue: Queue, behaviour: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-c", _AGENT, str(old_release), str(queue), behaviour]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


@pytest.fixture
def job_id(installation: Installation, environment: dict[str, str]) -> str:
    """A job that the old release has accepted, on the new schema."""
    command = [sys.executable, "-P", "-c", _SUBMIT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return "ftjob-1"


def _finish(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said


def test_an_old_agent_does_a_job_on_the_new_schema_from_data_to_model(
    start_old: StartOld, job_id: str, job_of: JobOf, installation: Installation
) -> None:
    _finish(start_old(Queue.CPU, "done"))
    _finish(start_old(Queue.TRAIN, "done"))
    job = job_of(job_id)
    assert (job.state, job.step, job.error_message) == (State.SUCCEEDED, 4, None)
    with installation.database.reading() as session:
        artifacts = repository.list_artifacts(session, job_id)
    assert [item.name for item in artifacts] == ["adapter/adapter_config.json", "metrics.csv"]


def test_a_new_agent_goes_on_from_the_checkpoint_of_an_old_one_that_made_room(
    start_old: StartOld,
    job_id: str,
    job_of: JobOf,
    installation: Installation,
    make_agent: Callable[..., Agent],
) -> None:
    _finish(start_old(Queue.CPU, "done"))
    old = start_old(Queue.TRAIN, "wait")
    try:
        wait_for(lambda: job_of(job_id).phase == "training")
    finally:
        old.terminate()
        _finish(old)
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        runs = session.scalars(select(Run).where(Run.job_id == job_id).order_by(Run.epoch)).all()
    assert job_of(job_id).state == State.SUCCEEDED
    assert [(run.host, run.from_step) for run in runs] == [("old", 0), ("host", 3)]


@pytest.mark.parametrize("revision", schema.revisions()[1:])
def test_a_migration_takes_nothing_away_that_the_release_before_writes(tmp_path: Path, revision: str) -> None:
    """No column goes or becomes required: columns are dropped a release after nobody writes them any more."""
    before, after = (_columns(tmp_path, name) for name in (_before(revision), revision))
    assert [name for name in before if name not in after] == []
    tables = {table for table, _ in before}
    required = [
        name
        for name, is_optional in after.items()
        if name[0] in tables and not is_optional and before.get(name, True)
    ]
    assert required == []


def _before(revision: str) -> str:
    known = schema.revisions()
    return known[known.index(revision) - 1]


def _columns(folder: Path, revision: str) -> dict[tuple[str, str], bool]:
    """Each column, and whether an INSERT may leave it out."""
    database = Database(f"sqlite:///{folder / revision}.db")
    with schema.migrating(database) as connection:
        schema.migrate(connection, revision)
        found = {
            (table.name, column.name): column.nullable or column.server_default is not None
            for table in tables_of(connection)
            for column in table.c
        }
    database.close()
    return found
