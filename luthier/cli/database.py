"""`luthier db`: the schema of the database that the settings name."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy.exc import DBAPIError

from luthier import schema
from luthier.cli.terminal import fail, say
from luthier.database import Database
from luthier.settings import Settings
from luthier.sqlite import quick_check

app = typer.Typer(no_args_is_help=True, help="Bring the database's tables to this release.")


@app.command()
def upgrade() -> None:
    """Migrate the database to this release; safe to repeat, and from several hosts at once.

    `luthier up` does this by itself. With Postgres, run it before starting the processes of a new release.
    """
    with answering(Database(Settings().database)) as database:
        before = schema.current_revision(database)
        schema.upgrade(database)
    say(f"The schema is {schema.wanted_revision()} (it was {before or 'empty'})")


@app.command()
def current() -> None:
    """Show the schema that the database has, and the one that this release wants."""
    with answering(Database(Settings().database)) as database:
        revision = schema.current_revision(database)
    print(f"{revision or 'empty'} (wanted: {schema.wanted_revision()})")
    if revision != schema.wanted_revision():
        fail("the database is not at this release's schema: run `luthier db upgrade`")


def check_file(database: Database, settings: Settings) -> None:
    """Look for damage in SQLite's file, within the time that the settings allow; ends the command on some.

    Started on a damaged file, the service would spread the damage.
    """
    if not (database.file and settings.check_seconds and database.file.exists()):
        return
    health = quick_check(database.engine, seconds=settings.check_seconds)
    if health.problems:
        fail(
            f"the database {database.file} is damaged ({health.problems[0]}): move it away together with the "
            "files beside it that begin with its name, then run `luthier restore`"
        )
    if not health.is_whole:
        say(
            f"The database was checked in part, for {settings.check_seconds:g} s (LUTHIER_CHECK_SECONDS); "
            "`luthier doctor` reads all of it"
        )


@contextmanager
def answering(database: Database) -> Iterator[Database]:
    """Use a database and close it; ends the command with a clear line where it does not answer."""
    try:
        yield database
    except DBAPIError as error:
        where = database.url.render_as_string(hide_password=True)
        fail(
            f"the database {where} does not answer: {error.orig}. "
            "Check LUTHIER_DATABASE_URL, or run `luthier doctor`"
        )
    finally:
        database.close()
