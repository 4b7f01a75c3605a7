"""The schema of a database: what revision it has, what this release wants, and the way between.

Migrations lie in the package `migrations` and run on SQLite and on Postgres. An advisory lock (Postgres) or
the writer's lock (SQLite) keeps two processes from migrating at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from luthier.database import Database
from luthier.errors import LuthierError

_LOCK_NUMBER = 0x6C757468  # "luth"; any constant that nothing else locks


def wanted_revision() -> str:
    """The revision that this release works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise LuthierError("the package has no migrations; install Luthier again", "server_error")
    return head


def current_revision(database: Database) -> str | None:
    """The revision of a database; None for an empty one."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database) -> bool:
    """Bring a database to the wanted revision; returns whether anything was done.

    Raises:
        LuthierError: the database was made by a newer release.
    """
    current, wanted = current_revision(database), wanted_revision()
    if current == wanted:
        return False
    if current is not None and not is_known(current):
        raise LuthierError(
            f"The database has revision {current}, which this release does not know: it was made by a newer "
            "Luthier. Install that release, or restore a backup.",
            "server_error",
        )
    with migrating(database) as connection:
        migrate(connection, wanted)
    return True


def is_known(revision: str) -> bool:
    """Whether this release can migrate a database of a revision."""
    return revision in revisions()


def revisions() -> list[str]:
    """All revisions of this release, the oldest first."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return [script.revision for script in scripts][::-1]


def migrate(connection: Connection, revision: str) -> None:
    """Bring an empty or older database to a known revision, on a connection of `migrating`."""
    command.upgrade(_config(connection), revision)


def downgrade(database: Database, revision: str) -> None:
    """Take a database back to an older revision (`base` removes every table)."""
    with migrating(database) as connection:
        command.downgrade(_config(connection), revision)


@contextmanager
def migrating(database: Database) -> Iterator[Connection]:
    """One transaction for all steps, in which nobody else migrates.

    SQLite alters a table by copying it, and dropping the old one would fail on what refers to it: references
    are not enforced meanwhile, and checked at the end.
    """
    with database.engine.connect() as connection:
        if not database.is_sqlite:
            with connection.begin():
                lock(connection)
                yield connection
            return
        driver = connection.connection.cursor()
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                if broken := connection.execute(text("PRAGMA foreign_key_check")).all():
                    raise LuthierError(
                        f"The migration left {len(broken)} dangling references", "server_error"
                    )
        finally:
            driver.execute("PRAGMA foreign_keys=ON")


def lock(connection: Connection) -> None:
    """Keep others from migrating, or from preparing an installation, until the transaction ends.

    On SQLite a transaction that writes has the only lock there is.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(str(files("migrations")))))
    config.attributes["connection"] = connection
    return config
